/**
 * The dashboard: one page over the public protocol, so that anybody can build another.
 *
 *   landline.js        `$sys/#`, which is also the tick of the page; watches of the state and of
 *                      `$presence/#` while they are shown; the subscription of the tail; publishing
 *   v1/topics          asked for every few seconds while the list is shown
 *   v1/connections     the same; DELETE ends one
 *
 * Nothing is painted more than five times a second, for longer than an eighth of the time, or while
 * nobody can see it. What came from elsewhere goes into the page as text and nothing else.
 */
import { connect } from './landline.js'

const REPAINT = 200
const PAGE_ROWS = 50
const LIST_PAGES = 10
const TAIL_ROWS = 500
const TAIL_BURST = 60
const TAIL_HELD = 200
const HISTORY = 600

// ---- small helpers ----

const base = new URL('.', import.meta.url)
const $ = id => document.getElementById(id)
const is = value => value !== undefined && value !== null

/** An element with properties; strings among the children become text. */
function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties)
  made.append(...children)
  return made
}

function put(node, text) {
  if (node.textContent !== `${text}`) node.textContent = text
}

/** Shows a sentence, or hides its place. */
function say(node, text) {
  node.hidden = !text
  put(node, text || '')
}

const button = (text, onclick) => make('button', { type: 'button', onclick }, text)
const sentence = text => text && `${text[0].toUpperCase()}${text.slice(1).replace(/\.?$/, '.')}`
const plain = new Intl.NumberFormat('en', { maximumFractionDigits: 0 })
const tenths = new Intl.NumberFormat('en', { maximumFractionDigits: 1 })
const count = number => (is(number) ? plain.format(number) : '–')
const rate = number => (is(number) ? (number < 10 ? tenths : plain).format(number) : '–')
const several = (number, noun) => `${count(number)} ${noun}${number === 1 ? '' : 's'}`

function size(bytes) {
  if (!is(bytes)) return '–'
  let unit = 0
  for (; bytes >= 1000 && unit < 4; unit++) bytes /= 1024
  return `${(unit ? rate : count)(bytes)} ${['B', 'KiB', 'MiB', 'GiB', 'TiB'][unit]}`
}

function span(ms) {
  if (!is(ms)) return '–'
  if (ms < 1000) return `${Math.round(ms)} ms`
  const units = [[86_400, 'd'], [3600, 'h'], [60, 'min'], [1, 's']]
  const seconds = Math.round(ms / 1000)
  const at = units.findIndex(([unit]) => seconds >= unit)
  const whole = Math.floor(seconds / units[at][0])
  const [below, name] = units[at + 1] ?? []
  const rest = below && whole < 10 && Math.floor((seconds % units[at][0]) / below)
  return `${whole} ${units[at][1]}${rest ? ` ${rest} ${name}` : ''}`
}

const formats = [{}, { fractionalSecondDigits: 3 }, { year: 'numeric', month: 'short', day: 'numeric' }]
  .map(more => new Intl.DateTimeFormat(undefined,
    { hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23', ...more }))
const [SECONDS, MILLISECONDS, DAY] = formats
const iso = time => (is(time) ? new Date(time).toISOString() : '')

function clock(time, format = SECONDS) {
  const isToday = new Date(time).toDateString() === new Date().toDateString()
  return (isToday ? format : DAY).format(time)
}

/** JSON that keeps the digits of its numbers on the way out, where the browser can do that. */
function parse(text) {
  return JSON.parse(text, (_, value, context) => {
    const isNumber = typeof value === 'number' && context?.source && JSON.rawJSON
    return isNumber ? JSON.rawJSON(context.source) : value
  })
}

function brief(value, length = 200) {
  const text = JSON.stringify(value) ?? '–'
  return text.length > length ? `${text.slice(0, length)}…` : text
}

const quoted = text => `'${text.replaceAll("'", "'\\''")}'`
const path = (kind, name) => `${base.href}v1/${kind}/${name.split('/').map(encodeURIComponent).join('/')}`

function publishCurl(topic, name, data) {
  const header = name ? `-H ${quoted(`Event-Name: ${name}`)} ` : ''
  return `curl ${header}-d ${quoted(data)} ${quoted(`${path('topics', topic)}/events`)}`
}

async function copy(text, { target }) {
  let isDone = true
  try {
    await navigator.clipboard.writeText(text)
  } catch {
    // Without TLS a page has no clipboard, but may copy what is selected.
    const field = make('textarea', { value: text, className: 'vh' })
    target.after(field)
    field.select()
    isDone = document.execCommand('copy')
    field.remove()
    target.focus()
  }
  const before = target.dataset.label ??= target.textContent
  put(target, isDone ? 'Copied' : 'Not copied')
  setTimeout(() => put(target, before), 1500)
}

// ---- sections and painting ----

const parts = {}
let shown = null
let timer = null
let nextPaint = 0
const dirty = new Set()

/** A section of the page. `resume` and `pause` say whether anybody looks. */
function section(name, part) {
  return (parts[name] = Object.assign(part, { name, section: $(`s-${name}`) }))
}

/** Has a part painted soon: one that is not shown when it is. */
function repaint(part) {
  dirty.add(part)
  if (timer || document.hidden) return
  timer = setTimeout(paint, Math.max(0, nextPaint - performance.now()))
}

function paint() {
  const from = performance.now()
  for (const part of [frame, shown]) {
    if (dirty.delete(part)) part.paint()
  }
  timer = null
  const now = performance.now()
  nextPaint = Math.max(from + REPAINT, now + 7 * (now - from))
}

function look() {
  shown.resume?.()
  repaint(frame)
  repaint(shown)
}

function route() {
  const [name, rest = ''] = location.hash.slice(1).split(/\/(.*)/s)
  const part = parts[name] ?? (shown || parts.overview)
  let argument = rest
  try {
    argument = decodeURIComponent(rest)
  } catch {
    // What cannot be decoded is taken as it stands.
  }
  if (shown !== part) {
    shown?.pause?.()
    for (const other of Object.values(parts)) other.section.hidden = other !== part
    for (const link of document.querySelectorAll('nav a')) {
      const isCurrent = link.hash === `#${part.name}`
      if (isCurrent) link.setAttribute('aria-current', 'page')
      else link.removeAttribute('aria-current')
      if (isCurrent) link.scrollIntoView({ block: 'nearest', inline: 'nearest' })
    }
    scrollTo(0, 0)
    shown = part
  }
  part.open?.(argument)
  look()
}

/** Has a section ask for a list again and again while it is shown. `work` returns how long to wait. */
function polled(part, work) {
  let running = null
  const step = async mine => {
    const wait = await work(mine.signal).catch(() => 5000)
    if (!mine.signal.aborted) setTimeout(() => mine.signal.aborted || step(mine), wait)
  }
  part.resume = () => {
    if (!running) step((running = new AbortController()))
  }
  part.pause = () => {
    running?.abort()
    running = null
  }
  part.again = () => {
    if (!running) return
    part.pause()
    part.resume()
  }
}

/** All pages of a list, or the first ten of them. */
async function list(kind, part, signal) {
  const all = []
  let after
  for (let page = 0; page < LIST_PAGES && (after || !page); page++) {
    const query = after ? `?after=${encodeURIComponent(after)}` : ''
    const answer = await fetch(new URL(`v1/${kind}${query}`, base), { cache: 'no-store', signal })
    const body = await answer.json()
    if (!answer.ok) throw Object.assign(new Error(body.detail), { status: answer.status })
    for (const row of body[kind]) all.push(row)
    after = body.next
  }
  part.rows = all
  part.table.note = after ? '. There are more: these are the first' : ''
  repaint(part)
  return all.length > LIST_PAGES * 100 ? 5000 : 2000
}

// ---- tables ----

/** A column: `of` a row is what it is sorted by, `show` makes it text, `fill` makes a cell once. */
const column = (name, label, more) => ({
  name, label, of: row => row[name], show: more?.fill ? null : value => value ?? '–', ...more,
})
const numbers = (name, label, show = count, more) => column(name, label, { number: true, show, ...more })
const times = (name, label, more) => numbers(name, label, value => (is(value) ? clock(value) : '–'),
  { minor: true, title: row => iso(row[name]), ...more })
/** A name that may break after its slashes. */
const named = (tag, name, more) =>
  make(tag, more, ...name.split(/(?<=\/)/).flatMap(part => [part, make('wbr')]))
const topicColumn = () => column('topic', 'Topic', {
  style: 'name',
  fill: (cell, { row }) => cell.append(named('a', row.topic, { href: `#tail/${encodeURIComponent(row.topic)}` })),
})
const actionColumn = (word, key, act) => column('act', 'Action', {
  of: null, style: 'act',
  fill(cell, line) {
    if (line.row[key].startsWith('$')) return
    cell.append(button(word, () => act(line.row)))
    cell.firstChild.setAttribute('aria-label', `${word} ${line.row[key]}`)
  },
})

/**
 * A table in a section, of `part.rows`: with a filter, columns to sort by, and pages, of which only
 * one is in the document.
 */
class Table {
  note = ''
  #part
  #of
  #page = 0
  #lines = new Map()
  #body = make('tbody')
  #filter = make('input', { type: 'search' })
  #summary = make('p', { className: 'summary' })
  #pager
  #heads
  #sort
  #empty

  /** `of` has `columns`, a `noun`, `key` and `search` of a row, and what to say if it is `empty`. */
  constructor(part, of) {
    part.rows = []
    part.table = this
    part.paint ??= () => this.paint()
    this.#part = part
    this.#of = of
    this.#sort = { name: of.columns[0].name, down: false }
    this.#empty = make('tr', {}, make('td', { className: 'empty', colSpan: of.columns.length }, of.empty))
    this.#heads = of.columns.map(column => {
      const label = column.of ? button(column.label, () => this.#sortBy(column)) : make('span', {}, column.label)
      return make('th', { scope: 'col', className: style(column) }, label)
    })
    const caption = part.section.querySelector('h2').textContent
    const scroller = make('div', { className: 'frame', tabIndex: 0, role: 'region', ariaLabel: caption },
      make('table', { className: 'rows' }, make('caption', { className: 'vh' }, caption),
        make('thead', {}, make('tr', {}, ...this.#heads)), this.#body))
    const turn = by => () => {
      this.#page += by
      repaint(part)
    }
    this.#pager = make('div', { className: 'pager' },
      button('Previous', turn(-1)), button('Next', turn(1)), make('p'))
    this.#filter.oninput = turn(-Infinity)
    const filter = make('label', { className: 'grow filter' }, 'Filter by text', this.#filter)
    this.host = make('div', {}, make('div', { className: 'bar' }, filter, this.#summary), scroller, this.#pager)
    part.section.append(this.host)
  }

  #sortBy({ name, number }) {
    this.#sort = { name, down: this.#sort.name === name ? !this.#sort.down : Boolean(number) }
    this.#page = 0
    repaint(this.#part)
  }

  #chosen(words) {
    const { rows } = this.#part
    const { columns, key, search } = this.#of
    const found = rows.filter(row => !words || search(row).toLowerCase().includes(words))
    const { of } = columns.find(({ name }) => name === this.#sort.name)
    const up = this.#sort.down ? -1 : 1
    return found.sort((a, b) => {
      const [one, other] = [of(a), of(b)]
      // What is not known comes last, whichever way.
      if (!is(one) || !is(other)) return is(other) - is(one)
      return one < other ? -up : one > other ? up : key(a) < key(b) ? -1 : 1
    })
  }

  paint() {
    const words = this.#filter.value.trim().toLowerCase()
    const found = this.#chosen(words)
    const last = Math.max(0, Math.ceil(found.length / PAGE_ROWS) - 1)
    this.#page = Math.min(Math.max(0, this.#page), last)
    const from = this.#page * PAGE_ROWS
    const rows = found.slice(from, from + PAGE_ROWS)
    const all = several(this.#part.rows.length, this.#of.noun)
    put(this.#summary, (words ? `${count(found.length)} of ${all}` : all) + this.note)
    const [previous, next, where] = this.#pager.children
    previous.disabled = !this.#page
    next.disabled = this.#page === last
    put(where, `${count(from + 1)} to ${count(from + rows.length)} of ${count(found.length)}`)
    this.#pager.hidden = !last
    this.#of.columns.forEach(({ name }, at) => {
      const direction = this.#sort.down ? 'descending' : 'ascending'
      this.#heads[at].ariaSort = name === this.#sort.name ? direction : null
    })
    this.#fill(rows)
  }

  /** Brings the rows in the document in line, and leaves alone what stays as it is. */
  #fill(rows) {
    const focused = document.activeElement
    const before = this.#lines
    this.#lines = new Map()
    let place = this.#body.firstChild
    for (const row of rows) {
      const key = this.#of.key(row)
      const line = before.get(key) ?? this.#line(row)
      before.delete(key)
      this.#lines.set(key, line)
      this.#update(line, row)
      if (line.node === place) place = place.nextSibling
      else this.#body.insertBefore(line.node, place)
    }
    for (const { node } of before.values()) node.remove()
    if (rows.length) this.#empty.remove()
    else this.#body.append(this.#empty)
    // A row that moved has lost the focus.
    if (focused !== document.activeElement && focused.isConnected) focused.focus()
  }

  #line(row) {
    const line = { row, node: make('tr') }
    this.#of.columns.forEach((column, at) => {
      const cell = make(at ? 'td' : 'th', { className: `${style(column)} ${column.style ?? ''}` })
      if (!at) cell.scope = 'row'
      column.fill?.(cell, line)
      line.node.append(cell)
    })
    return line
  }

  #update(line, row) {
    line.row = row
    this.#of.columns.forEach(({ of, show, title, high, update }, at) => {
      const cell = line.node.children[at]
      if (show) put(cell.firstElementChild ?? cell, show(of(row), row))
      if (title) cell.title = title(row)
      if (high) cell.classList.toggle('high', of(row) >= high)
      update?.(cell, row)
    })
  }
}

/** Columns that are `minor` are left out on a phone, those that are `rare` where there is no room. */
const style = column => ['number', 'minor', 'rare'].filter(name => column[name]).join(' ')

// ---- the connection, and what the relay says about itself ----

const me = `dashboard ${crypto.getRandomValues(new Uint32Array(1))[0].toString(16)}`
const relay = connect(base.href, { client: me })
const sys = relay.watch('$sys/#', change => {
  // The uptime is said each second, after the rest.
  if (change.key !== '$sys/uptime' && change.type !== 'synced') return
  overview.sample()
  repaint(frame)
  repaint(shown)
})
const value = name => sys.values.get(`$sys/${name}`)?.value

const frame = {
  paint() {
    put($('version'), value('version') ? `Landline ${value('version')}` : '')
    for (const name of ['topics', 'connections']) {
      put($(`badge-${name}`), is(value(name)) ? count(value(name)) : '')
    }
    document.body.classList.toggle('stale', relay.state !== 'open')
  },
}

const WORDS = {
  connecting: 'Connecting', open: 'Connected', waiting: 'Connection lost, trying again',
  closed: 'Ended by the relay',
}

relay.on('state', ({ state, reason }) => {
  const isAgain = state === 'connecting' && overview.samples.length
  $('link').dataset.state = state
  $('link').title = reason ?? ''
  put($('link'), WORDS[isAgain ? 'waiting' : state])
  repaint(frame)
  if (state === 'open') shown.again?.()
})
relay.on('gap', gap => {
  if (gap.subscription === tail.subscription) tail.add({ gap })
})
relay.on('error', error => {
  if (error.pattern && error.pattern === state.pattern) state.refused(error)
  else if (error.subscription || error.topic) tail.refused(error)
  else notice(error.message)
})

function notice(text) {
  $('notice').hidden = !text
  put($('notice-text'), sentence(text))
}
$('notice-close').onclick = () => notice('')

// ---- overview ----

const svg = (tag, attributes) => {
  const made = document.createElementNS('http://www.w3.org/2000/svg', tag)
  for (const [name, text] of Object.entries(attributes)) made.setAttribute(name, text)
  return made
}

/** The last minutes of one number, at most ten, as a curve with its text. */
class Chart {
  #name
  #of
  #at = null
  #value = make('p', { className: 'value' })
  #axis = make('div', { className: 'axis' }, make('span'), make('span'), make('span', {}, 'now'))
  #svg = svg('svg', { viewBox: '0 0 600 100', preserveAspectRatio: 'none', role: 'img' })
  #shapes = ['area', 'stroke', 'here'].map(shape => svg('path', { class: shape }))

  constructor(name, of) {
    this.#name = name
    this.#of = of
    this.#svg.append(...this.#shapes)
    const plot = make('div', { className: 'plot' }, this.#svg)
    const point = at => {
      this.#at = at
      repaint(overview)
    }
    plot.onpointermove = ({ offsetX }) => point(offsetX / plot.clientWidth)
    plot.onpointerleave = () => point(null)
    $('charts').append(make('div', { className: 'card chart' },
      make('h3', {}, name), this.#value, plot, this.#axis))
  }

  /** `samples` have a `time` in seconds, and rise. */
  paint(samples) {
    const of = this.#of
    const end = samples.at(-1)?.time ?? 0
    const width = Math.min(HISTORY, Math.max(60, end - (samples[0]?.time ?? 0)))
    const seen = samples.filter(sample => is(of(sample)))
    const numbers = seen.map(of)
    const [low, high] = [Math.min(...numbers), Math.max(...numbers)]
    const top = ceiling(Math.max(1, high))
    const x = ({ time }) => (600 - (600 * (end - time)) / width).toFixed(1)
    const runs = []
    seen.forEach((sample, at) => {
      // Where nothing was heard for a while there is nothing to see.
      if (!at || sample.time - seen[at - 1].time > 5) runs.push([])
      runs.at(-1).push(`${x(sample)} ${(100 - (100 * of(sample)) / top).toFixed(1)}`)
    })
    const sought = end - width * (1 - this.#at)
    const here = this.#at !== null && (seen.find(({ time }) => time >= sought - 0.5) ?? seen.at(-1))
    const paths = [
      runs.map(run => `M${run[0].split(' ')[0]} 100L${run.join('L')}V100Z`),
      runs.map(run => `M${run.join('L')}`),
      here ? [`M${x(here)} 0V100`] : [],
    ]
    paths.forEach((path, at) => this.#shapes[at].setAttribute('d', path.join('')))
    const ago = here && end > here.time ? ` ${span((end - here.time) * 1000)} ago` : ''
    const now = seen.at(-1)
    this.#value.replaceChildren(rate(of(here || now || {})), make('span', {}, ago))
    const past = span(width * 1000)
    put(this.#axis.children[0], `${past} ago`)
    put(this.#axis.children[1], `top of scale ${count(top)}`)
    this.#svg.setAttribute('aria-label', now ? `${this.#name}, last ${past}: now ${count(of(now))}, `
      + `lowest ${count(low)}, highest ${count(high)}` : `${this.#name}: nothing known yet`)
  }
}

/** The next larger of 1, 2, 5, 10, 20 and so on. */
function ceiling(number) {
  const power = 10 ** Math.floor(Math.log10(number))
  return [1, 2, 5, 10].find(factor => number <= factor * power) * power
}

const STORE = {
  full: 'The disk is full: what is durable is refused.',
  io: 'The disk fails: what is durable is refused.',
  damaged: 'What is on disk is damaged.',
}

const overview = section('overview', {
  samples: [],
  charts: [
    new Chart('Published per second', sample => sample.published),
    new Chart('Delivered per second', sample => sample.delivered),
    new Chart('Connections', sample => sample.connections),
  ],

  sample() {
    const { samples } = this
    const time = Math.round(performance.now() / 1000)
    if (samples.at(-1)?.time === time) samples.pop()
    samples.push({ time, connections: value('connections'), ...value('rates') })
    while (samples[0].time < time - HISTORY) samples.shift()
  },

  paint() {
    for (const chart of this.charts) chart.paint(this.samples)
    const [rates, memory, totals, limits] =
      ['rates', 'memory', 'totals', 'limits'].map(name => value(name) ?? {})
    const of = (number, limit, show = count) => [show(number), is(limit) && `of ${show(limit)}`]
    facts($('tiles'), [
      ['Topics', ...of(value('topics'), limits.max_topics)],
      ['Subscriptions', count(value('subscriptions'))],
      ['Connections', ...of(value('connections'), limits.max_connections)],
      ['Stalled', count(value('stalled')), is(value('stalled')) && 'sockets full'],
      ['Memory of topics', ...of(memory.log_bytes, limits.max_memory, size)],
      ['Memory of state', ...of(memory.state_bytes, limits.max_state, size)],
      ['Received', `${size(rates.received_bytes)}/s`],
      ['Sent', `${size(rates.sent_bytes)}/s`],
      ['Published in all', count(totals.published)],
      ['Delivered in all', count(totals.delivered)],
      ['Running for', span(is(value('uptime')) ? value('uptime') * 1000 : null)],
      ['Version', value('version') ?? '–'],
    ])
    const store = value('store')
    $('verdict').dataset.is = store?.durable ? (store.ok ? 'good' : 'bad') : ''
    put($('verdict'), !store ? 'Not known yet.'
      : !store.durable ? 'No store: all is kept in memory.'
      : store.ok ? 'Healthy.' : STORE[store.reason] ?? `It fails: ${store.reason}.`)
    const bytes = [['Waiting for the disk', store?.backlog_bytes], ['Size on disk', store?.file_bytes]]
    facts($('store'), bytes.filter(([, number]) => is(number)).map(([name, number]) => [name, size(number)]))
    for (const name of ['gaps', 'disconnects', 'refused']) {
      const entries = Object.entries(value(name) ?? {}).sort(([, a], [, b]) => b - a)
      const none = value(name) ? 'None since the start' : 'Not told by this relay'
      const rows = entries.map(([reason, number]) => [reason.replaceAll('_', ' '), count(number)])
      facts($(name), rows.length ? rows : [[none, '']])
    }
  },
})

/** A list of names with their texts, and hints. */
function facts(host, entries) {
  while (host.children.length > entries.length) host.lastChild.remove()
  entries.forEach(([name, text, hint], at) => {
    const row = host.children[at]
      ?? host.appendChild(make('div', {}, make('dt'), make('dd', {}, '', make('span', { className: 'hint' }))))
    put(row.firstChild, name)
    const [own, more] = row.lastChild.childNodes
    if (own.data !== text) own.data = text
    put(more, hint || '')
  })
}

// ---- the live tail ----

/**
 * Events wait in `pending` until they are painted. At most a burst of them is: older ones are
 * counted, and said in a row where they would stand. While nobody looks there is room for more.
 */
const tail = section('tail', {
  topic: null,
  subscription: null,
  isPaused: false,
  words: '',

  open(topic) {
    if (topic && (topic !== this.topic || !this.subscription)) $('tail-topic').value = topic
    else if (this.topic !== null) return
    this.follow()
  },

  follow() {
    const choice = $('tail-from').value
    const from = choice > 0 ? { last: Number(choice) } : choice
    this.stop()
    this.clear()
    this.hold(false)
    this.topic = $('tail-topic').value.trim()
    history.replaceState(null, '', `#tail/${encodeURIComponent(this.topic)}`)
    try {
      say($('tail-error'))
      const subscription = this.subscription = relay.subscribe(this.topic, event => this.take(event), { from })
      subscription.ready.then(() => {
        subscription.isReady = true
        repaint(this)
      }, () => {})
    } catch (error) {
      this.refused(error)
    }
  },

  stop() {
    this.subscription?.unsubscribe()
    this.subscription = null
    repaint(this)
  },

  refused(error) {
    say($('tail-error'), sentence(error.message))
    if (error.subscription === this.subscription) this.subscription = null
    repaint(this)
  },

  clear() {
    $('tail-events').replaceChildren()
    this.pending = []
    this.skipped = this.lost = 0
    this.all = { events: 0, skipped: 0, filtered: 0 }
    this.last = { at: performance.now(), events: 0, skipped: 0 }
    this.rates = [0, 0]
    repaint(this)
  },

  hold(isPaused) {
    this.isPaused = isPaused
    $('tail-pause').ariaPressed = isPaused
    repaint(this)
  },

  take(event) {
    this.all.events++
    if (this.words && !this.matches(event)) this.all.filtered++
    else this.add({ event })
  },

  matches({ topic, name, user, data }) {
    const within = text => text?.toLowerCase().includes(this.words)
    return within(topic) || within(name) || within(user) || within(JSON.stringify(data))
  },

  add(entry) {
    this.pending.push(entry)
    const isSeen = shown === this && !document.hidden && !this.isPaused
    if (this.pending.length > (isSeen ? TAIL_BURST : TAIL_HELD)) {
      const { gap } = this.pending.shift()
      if (gap) this.lost += gap.to - gap.from + 1 || 1
      else this.skipped++
    }
    repaint(this)
  },

  paint() {
    if (!this.isPaused && this.pending.length) this.flush()
    const now = performance.now()
    const elapsed = (now - this.last.at) / 1000
    const { events, filtered } = this.all
    const skipped = this.all.skipped + this.skipped
    if (elapsed > 0.99) {
      this.rates = [(events - this.last.events) / elapsed, (skipped - this.last.skipped) / elapsed]
      this.last = { at: now, events, skipped }
    }
    const isOn = this.subscription?.isReady
    $('tail-stop').disabled = !this.subscription
    const waiting = this.skipped + this.pending.length
    facts($('tail-facts'), [
      [isOn ? 'Following' : this.subscription ? 'Asking for' : 'Stopped', this.topic],
      ['Rate', `${rate(isOn ? this.rates[0] : 0)}/s`],
      ['Skipped', `${rate(isOn ? this.rates[1] : 0)}/s`, skipped ? `, ${count(skipped)} in all` : ''],
      ['Received', count(events), this.words && `, ${count(filtered)} do not match`],
      ...(this.isPaused ? [['Paused', several(waiting, 'newer event')]] : []),
    ])
  },

  flush() {
    const host = $('tail-events')
    const rows = this.pending.map(({ event, gap }) => (gap ? gapRow(gap) : eventRow(event)))
    if (this.skipped || this.lost) {
      const gaps = this.lost ? ` and gaps of ${count(this.lost)}` : ''
      rows.unshift(make('li', { className: 'note' },
        `${several(this.skipped, 'event')}${gaps} skipped here: too many to show`))
    }
    this.all.skipped += this.skipped
    this.pending = []
    this.skipped = this.lost = 0
    host.prepend(...rows.reverse())
    if (host.children.length <= TAIL_ROWS) return
    const old = new Range()
    old.setStart(host, TAIL_ROWS)
    old.setEnd(host, host.childNodes.length)
    old.deleteContents()
  },
})
tail.clear()

function eventRow(event) {
  const { topic, seq, time, name, user, data } = event
  const cell = (className, text, tag = 'span') => make(tag, { className }, text)
  const row = make('details', {}, make('summary', {},
    make('time', { dateTime: iso(time), title: iso(time) }, clock(time, MILLISECONDS)),
    cell('topic', topic), cell('seq', seq), cell('who', [name, user].filter(Boolean).join(' · ')),
    cell('data', brief(data, 300), 'code')))
  row.ontoggle = () => {
    if (!row.open) return
    // What is being read is not to run away.
    tail.hold(true)
    if (row.children.length === 1) row.append(eventDetails(event))
  }
  return make('li', {}, row)
}

function eventDetails({ topic, seq, epoch, time, name, user, data }) {
  const about = [`${topic} ${seq}`, iso(time), name && `name ${name}`, user && `by ${user}`, `epoch ${epoch}`]
  const curl = publishCurl(topic, name, JSON.stringify(data))
  return make('div', { className: 'more' }, make('p', { className: 'muted' }, about.filter(Boolean).join(' · ')),
    make('pre', {}, JSON.stringify(data, null, 2)), button('Copy as curl', event => copy(curl, event)))
}

function gapRow({ topic, from, to, reason, reset }) {
  const range = !is(from) ? 'an unknown number of events'
    : from === to ? `event ${from}` : `events ${count(from)} to ${count(to)}`
  const life = reset ? '; the topic began a new life' : ''
  return make('li', { className: 'gap' },
    `Gap in ${topic}: ${range} will not come (${reason.replaceAll('_', ' ')})${life}`)
}

$('tail-form').onsubmit = event => {
  event.preventDefault()
  tail.follow()
}
$('tail-stop').onclick = () => tail.stop()
$('tail-clear').onclick = () => tail.clear()
$('tail-pause').onclick = () => tail.hold(!tail.isPaused)
$('tail-filter').oninput = ({ target }) => {
  tail.words = target.value.trim().toLowerCase()
  for (const row of $('tail-events').querySelectorAll('li:has(summary)')) {
    row.hidden = !row.textContent.toLowerCase().includes(tail.words)
  }
  repaint(tail)
}

// ---- topics and connections ----

const topics = section('topics', {})
polled(topics, signal => list('topics', topics, signal))
new Table(topics, {
  noun: 'topic', empty: 'No topic.', key: row => row.topic, search: row => row.topic,
  columns: [
    topicColumn(),
    numbers('rate', 'Events/s', rate),
    numbers('tail', 'Tail', count, { title: row => `first ${row.first}, epoch ${row.epoch}` }),
    numbers('events', 'Kept', count, { minor: true }),
    numbers('subscribers', 'Subscribers'),
    numbers('bytes', 'Memory', size),
    column('durability', 'Durability', { minor: true }),
  ],
})

const connections = section('connections', {})
const refuse = why => {
  say($('connections-refused'), sentence(why))
  connections.table.host.hidden = Boolean(why)
}
polled(connections, async signal => {
  try {
    const wait = await list('connections', connections, signal)
    refuse('')
    return wait
  } catch (error) {
    if (signal.aborted || !error.status) throw error
    refuse(error.message)
    return 10_000
  }
})
const minor = { minor: true }
new Table(connections, {
  noun: 'connection', empty: 'No connection.', key: row => row.connection,
  search: row => Object.values(row).filter(text => typeof text === 'string').join(' '),
  columns: [
    column('connection', 'Connection', { of: row => Number(row.connection.slice(1)),
      show: (_, { connection, client }) => connection + (client === me ? ' (here)' : '') }),
    column('user', 'User, client', { style: 'name', show: (user, { client }) =>
      [user, client].filter(Boolean).join(' · ') || '–' }),
    column('address', 'Address', minor),
    column('transport', 'By', minor),
    numbers('age_ms', 'Age', span, minor),
    numbers('heard_ms', 'Heard', span, { minor: true, rare: true }),
    numbers('pong_ms', 'Last pong', span,
      { minor: true, title: row => (is(row.rtt_ms) ? `round trip ${row.rtt_ms} ms` : '') }),
    numbers('follows', 'Follows', count, { minor: true, of: row => row.subscriptions + row.watches,
      title: row => `${several(row.subscriptions, 'subscription')}, ${row.watches} watched` }),
    numbers('lag', 'Lag', count, { high: 1000 }),
    numbers('pending_bytes', 'Pending', size, { high: 65_536, minor: true }),
    numbers('received_bytes', 'In', size, { minor: true, rare: true }),
    numbers('sent_bytes', 'Out', size, minor),
    actionColumn('End', 'connection', askToEnd),
  ],
})

function askToEnd({ connection, user, client, address, age_ms }) {
  put($('ask-text'), `${connection} is ${user ?? client ?? 'somebody without a name'} at ${address}, `
    + `connected for ${span(age_ms)}. It is told so, and may come back.`)
  $('ask-yes').onclick = async () => {
    $('ask').close()
    try {
      const answer = await fetch(path('connections', connection), { method: 'DELETE' })
      if (!answer.ok) notice((await answer.json()).detail)
    } catch (error) {
      notice(`${connection} was not ended: ${error.message}`)
    }
    connections.again()
  }
  $('ask').showModal()
}
$('ask-no').onclick = () => $('ask').close()

// ---- state and presence ----

/** Has a section watch its pattern while it is shown; what changes meanwhile comes later. */
function watched(part, rowOf) {
  part.resume = () => {
    const { pattern } = part
    if (part.watch || !pattern) return
    // What the page watches anyway is not watched twice.
    part.watch = pattern === sys.pattern ? { values: sys.values, unwatch() {} }
      : relay.watch(pattern, () => repaint(part))
  }
  part.pause = () => {
    part.watch?.unwatch()
    part.watch = null
  }
  part.paint = () => {
    part.rows = [...(part.watch?.values.values() ?? [])].map(rowOf)
    part.table.paint()
  }
}

const isCalm = matchMedia('(prefers-reduced-motion: reduce)')

/** Shows for a moment that a value is new. */
function flash(cell, { version }) {
  const isNew = cell.dataset.version && cell.dataset.version !== `${version}`
  cell.dataset.version = version
  if (!isNew || isCalm.matches) return
  const backgroundColor = getComputedStyle(cell).getPropertyValue('--tint')
  cell.animate([{ backgroundColor }, { backgroundColor: 'transparent' }], 1500)
}

const clamped = { style: 'wide mono', fill: cell => cell.append(make('div', { className: 'clamp' })) }
const state = section('state', {
  pattern: '#',
  refused(error) {
    this.watch = this.pattern = null
    say($('state-error'), sentence(error.message))
  },
})
watched(state, row => row)
new Table(state, {
  noun: 'key', empty: 'No such key.', key: row => row.key,
  search: row => `${row.key} ${row.user ?? ''} ${JSON.stringify(row.value)}`,
  columns: [
    column('key', 'Key', { style: 'name', fill: (cell, { row }) => cell.append(named('span', row.key)) }),
    column('value', 'Value', { ...clamped, of: row => JSON.stringify(row.value),
      show: (_, row) => brief(row.value), title: row => brief(row.value, 1000), update: flash }),
    numbers('version', 'Version', count, minor),
    times('time', 'Changed'),
    column('user', 'Set by', minor),
    times('expires', 'Expires'),
    actionColumn('Edit', 'key', edit),
  ],
})
$('state-form').onsubmit = event => {
  event.preventDefault()
  state.pause()
  say($('state-error'))
  state.pattern = $('state-pattern').value.trim() || '#'
  look()
}

const presence = section('presence', { pattern: '$presence/#' })
watched(presence, ({ key, value }) => {
  const [, topic, user] = key.match(/^\$presence\/(.*)\/(.*)$/s)
  return { ...value, key, topic, user }
})
new Table(presence, {
  noun: 'member', empty: 'Nobody is present in any topic.', key: row => row.key,
  search: row => `${row.key} ${JSON.stringify(row.info)}`,
  columns: [
    topicColumn(),
    column('user', 'User', { style: 'name' }),
    numbers('connections', 'Connections', count, minor),
    times('since', 'Since', { minor: false }),
    column('info', 'Info', { ...clamped, minor: true, of: row => JSON.stringify(row.info),
      show: (_, row) => brief(row.info) }),
  ],
})

// ---- publishing and setting ----

const text = id => $(id).value.trim()

section('publish', {
  paint() {
    put($('publish-curl'), publishCurl(text('publish-topic') || 'TOPIC', text('publish-name'), text('publish-data')))
    const version = text('set-version')
    const condition = version === '0' ? `-H 'If-None-Match: *' `
      : version ? `-H ${quoted(`If-Match: "${version}"`)} ` : ''
    const query = text('set-ttl') ? `?ttl_ms=${text('set-ttl') * 1000}` : ''
    put($('set-curl'), `curl -X PUT ${condition}-d ${quoted(text('set-value'))} `
      + quoted(path('state', text('set-key') || 'KEY') + query))
  },
})

function edit({ key, value, version }) {
  location.hash = '#publish'
  const fields = { key, value: JSON.stringify(value, null, 2), version, ttl: '' }
  for (const [name, content] of Object.entries(fields)) $(`set-${name}`).value = content
  route()
  $('set-value').focus()
}

/** Says what is wrong in a form, at its field if there is one. */
function fault(form, problem, field) {
  for (const input of form.querySelectorAll('[aria-invalid]')) input.ariaInvalid = null
  const place = form.querySelector('.error')
  say(place, sentence(problem))
  put(form.querySelector('output'), '')
  if (!problem || !field) return
  field.ariaInvalid = 'true'
  field.setAttribute('aria-describedby', place.id)
  field.focus()
}

/** Does what a form asks for, and shows what became of it. `field` names where an error belongs. */
async function submit(form, field, ask) {
  fault(form)
  const output = form.querySelector('output')
  try {
    const asked = ask()
    put(output, relay.state === 'open' ? 'Sent, no answer yet.' : 'It is sent when there is a connection.')
    put(output, await asked)
  } catch (error) {
    const now = is(error.version) ? ` (version ${error.version} now)` : ''
    fault(form, error.message.replace(/\.$/, '') + now, field(error.field))
  }
}

/** The JSON in a field. Throws what is wrong with it. */
function jsonOf(what, id) {
  try {
    return parse(text(id))
  } catch (error) {
    const isBare = /^[\w -]+$/.test(text(id)) && !/^[\d-]/.test(text(id))
    const hint = isBare ? `; a text stands in quotes: "${text(id)}"` : ''
    throw Object.assign(new Error(`the ${what} is not JSON: ${error.message}${hint}`), { field: what })
  }
}

function numberOf(what, id, field) {
  if (!text(id)) return undefined
  if (Number(text(id)) >= 0) return Number(text(id))
  throw Object.assign(new Error(`the ${what} is not a number`), { field })
}

const durability = name => ({ memory: 'in memory', synced: 'on disk' })[name] ?? name

$('publish-form').onsubmit = event => {
  event.preventDefault()
  submit(event.target, name => $(`publish-${name}`), async () => {
    const data = jsonOf('data', 'publish-data')
    const topic = text('publish-topic')
    const done = await relay.publish(topic, data, { name: text('publish-name') || undefined })
    return `Published as event ${done.seq} of ${topic}, ${durability(done.durability)}.`
  })
}

const setField = name => $({ if_version: 'set-version', ttl_ms: 'set-ttl' }[name] ?? `set-${name}`)

$('set-form').onsubmit = event => {
  event.preventDefault()
  submit(event.target, setField, async () => {
    const ifVersion = numberOf('version', 'set-version', 'if_version')
    const seconds = numberOf('time', 'set-ttl', 'ttl_ms')
    const options = { ifVersion, ttl: is(seconds) ? Math.round(seconds * 1000) : undefined }
    const done = await relay.set(text('set-key'), jsonOf('value', 'set-value'), options)
    if (is(ifVersion)) $('set-version').value = done.version
    return `Set as version ${done.version}, ${durability(done.durability)}.`
  })
}
$('set-delete').onclick = () => submit($('set-form'), setField, async () => {
  const done = await relay.delete(text('set-key'), { ifVersion: numberOf('version', 'set-version', 'if_version') })
  return done ? `Deleted as version ${done.version}.` : 'The key had no value.'
})

for (const field of document.querySelectorAll('input, textarea')) {
  Object.assign(field, { autocomplete: 'off', autocapitalize: 'none', spellcheck: false })
}
for (const form of document.querySelectorAll('.forms form')) form.oninput = () => repaint(parts.publish)
for (const place of document.querySelectorAll('.curl')) {
  place.append(button('Copy', event => copy(place.firstElementChild.textContent, event)))
}

// ---- the theme, and the start ----

const THEMES = ['auto', 'light', 'dark']

function theme(next) {
  document.documentElement.dataset.theme = next
  put($('theme'), `Theme: ${next}`)
}

try {
  theme(localStorage.getItem('landline theme') ?? 'auto')
} catch {
  theme('auto')
}
$('theme').onclick = () => {
  const next = (THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length
  theme(THEMES[next])
  try {
    localStorage.setItem('landline theme', THEMES[next])
  } catch {
    // It is for this visit then.
  }
}
$('skip').onclick = event => {
  event.preventDefault()
  $('main').focus()
}
document.addEventListener('visibilitychange', () => {
  if (!document.hidden) look()
  // What is watched costs little; a list that nobody sees is not asked for.
  else if (shown.again) shown.pause()
})
addEventListener('hashchange', route)
route()
