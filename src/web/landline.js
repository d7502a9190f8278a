/**
 * The client of Landline for browsers and Node: one ES module without dependencies.
 * docs/javascript.md says how to use it, docs/protocol.md what goes over the wire.
 *
 * Three parts, each plain data beside the connection:
 *
 *   Relay    the connection: opening, liveness, coming back; requests until they are answered
 *   Follows  which subscription gets which event, and where each goes on
 *   Watches  which watch gets which change of the state, and where all go on
 *
 * @typedef {{epoch: string, seq: number}} Position
 * @typedef {'live' | 'start' | {last: number} | {since: number} | Position
 *   | {positions: Object<string, Position>}} From
 * @typedef {{topic: string, epoch: string, seq: number, time: number, user?: string,
 *   name?: string, data: any, redelivered?: boolean}} Event
 * @typedef {{from?: From, ack?: boolean, consumer?: string, window?: number,
 *   slow?: 'gap' | 'disconnect', store?: Store}} SubscribeOptions
 * @typedef {{type: 'reset'} | {type: 'synced', version: number} | {type: 'state', key: string,
 *   version: number, time: number, value?: any, deleted?: boolean, user?: string,
 *   expires?: number}} Change
 * @typedef {{getItem(key: string): string | null, setItem(key: string, value: string): void}} Store
 * @typedef {{topic: string, from: number | null, to: number | null, reason: string,
 *   reset: boolean, subscription: Subscription}} Gap
 * @typedef {{state: State, code?: number, reason?: string, retryIn?: number}} StateChange
 * @typedef {'connecting' | 'open' | 'waiting' | 'closed'} State
 * @typedef {{user?: string, client?: string, WebSocket?: typeof WebSocket, store?: Store,
 *   maxQueued?: number, maxQueuedBytes?: number, resendWithin?: number, backoffMin?: number,
 *   backoffMax?: number, connectWithin?: number, pingAfter?: number,
 *   pongWithin?: number}} Options
 */

const DEFAULTS = {
  maxQueued: 1000,
  maxQueuedBytes: 1 << 20,
  // Below the two minutes for which a relay remembers the key of a publish.
  resendWithin: 110_000,
  backoffMin: 500,
  backoffMax: 20_000,
  connectWithin: 10_000,
  pingAfter: 25_000,
  pongWithin: 8_000,
}
const SAVE_AFTER = 200
const POSITIONS_MAX = 10_000
const TEMPORARY = ['busy', 'unavailable', 'rate_limited', 'internal']

/** What went wrong: a refusal of the relay with its `code`, or one of this client's own codes. */
export class LandlineError extends Error {
  /** @param {string} code @param {string} message @param {object} [more] */
  constructor(code, message, more) {
    super(message)
    Object.assign(this, more, { name: 'LandlineError', code })
  }
}

/**
 * Opens a connection and keeps it open until `close()`.
 * @param {string} [url] where the relay is; without it, where the page came from
 * @param {Options} [options]
 * @returns {Relay}
 */
export function connect(url, options) {
  return new Relay(url, options)
}

const now = () => performance.now()
// `crypto.randomUUID` is not there on a page that came without TLS.
const random = () => crypto.getRandomValues(new Uint32Array(4)).join('-')
const bytes = text => new TextEncoder().encode(text).length
const isPattern = name => name.split('/').some(part => part === '+' || part === '#')

function address(url) {
  if (!url && !globalThis.location) throw new TypeError('connect() needs a URL outside of a page')
  const found = new URL(url ?? location.origin)
  found.protocol = found.protocol.replace('http', 'ws')
  if (!found.pathname.endsWith('/ws')) found.pathname = found.pathname.replace(/\/*$/, '/ws')
  return found.href
}

/** Whether there is a name that both match. A name matches itself alone. */
function overlap(one, other) {
  const [a, b] = [one.split('/'), other.split('/')]
  if ((a[0] === '+' || a[0] === '#') && b[0].startsWith('$')) return false
  if ((b[0] === '+' || b[0] === '#') && a[0].startsWith('$')) return false
  for (let at = 0; at < a.length || at < b.length; at++) {
    if (a[at] === '#' || b[at] === '#') return true
    if (a[at] === undefined || b[at] === undefined) return false
    if (a[at] !== '+' && b[at] !== '+' && a[at] !== b[at]) return false
  }
  return true
}

class Relay {
  #options
  #url
  #WebSocket
  #handlers = new Map()
  #state = 'connecting'
  #socket = null
  #heard = null
  #openedAt = null
  #attempts = 0
  #bye = null
  #retry = null
  #alive = null
  #pinged = null
  #ponged = false
  #pauses = new Set()
  #cleanup = []
  #ids = 0
  #asks = new Map()
  #requests = new Map()
  #queuedBytes = 0
  #messageMax = 256 << 10
  #joined = new Map()
  #follows
  #watches
  #keys = { prefix: random(), count: 0 }

  constructor(url, options = {}) {
    this.#options = { ...DEFAULTS, ...options }
    this.#url = address(url)
    this.#WebSocket = options.WebSocket ?? globalThis.WebSocket
    if (!this.#WebSocket) throw new TypeError('there is no WebSocket here; pass {WebSocket}')
    // What the two other parts may do with the connection.
    const link = {
      emit: (name, detail) => this.#emit(name, detail),
      call: (handler, value) => this.#call(handler, value),
      ask: (body, done, failed) => this.#ask(body, done, failed),
      send: body => this.#send(body),
      later: (what, wait) => this.#later(what, wait),
      again: reason => this.#lost(1006, reason),
      isOpen: () => this.#state === 'open',
      messageMax: () => this.#messageMax,
    }
    this.#follows = new Follows(link, this.#url)
    this.#watches = new Watches(link)
    this.#open()
    this.#listen(globalThis, 'online', () => this.#hurry())
    this.#listen(globalThis, 'pagehide', () => this.#follows.save())
    const { document } = globalThis
    this.#listen(document, 'visibilitychange', () => {
      if (document.visibilityState === 'visible') this.#hurry()
    })
  }

  /** @returns {State} */
  get state() {
    return this.#state
  }

  /** Milliseconds since the relay was last heard, `null` if it never was. */
  get age() {
    return this.#heard === null ? null : now() - this.#heard
  }

  /** Requests without an answer, among them what is queued. */
  get queued() {
    return this.#requests.size
  }

  /**
   * @param {'gap' | 'state' | 'error' | 'bye'} name
   * @param {(detail: any) => void} handler
   */
  on(name, handler) {
    if (!this.#handlers.has(name)) this.#handlers.set(name, new Set())
    this.#handlers.get(name).add(handler)
    return this
  }

  off(name, handler) {
    this.#handlers.get(name)?.delete(handler)
    return this
  }

  /**
   * Follows a topic, or all topics that match a pattern.
   * @param {string} topic
   * @param {(event: Event) => void} handler
   * @param {SubscribeOptions} [options]
   * @returns {Subscription}
   */
  subscribe(topic, handler, options = {}) {
    this.#mustBeOpen()
    return this.#follows.add(topic, handler, { store: this.#options.store, ...options })
  }

  /**
   * Publishes an event. The promise is kept when the relay has it.
   * @param {string} topic
   * @param {any} data
   * @param {{name?: string, key?: string}} [options]
   * @returns {Promise<{seq: number, epoch: string, durability: string, duplicate?: true}>}
   */
  publish(topic, data, { name, key } = {}) {
    key ??= `${this.#keys.prefix}-${++this.#keys.count}`
    return this.#request({ type: 'publish', topic, name, key, data: data ?? null })
  }

  /**
   * Up to `limit` events of a topic.
   * @param {string} topic
   * @param {{from?: From, limit?: number}} [options]
   */
  history(topic, { from, limit } = {}) {
    return this.#request({ type: 'history', topic, from, limit })
  }

  /**
   * Watches a key, or all that match a pattern: what there is, then every change.
   * @param {string} pattern
   * @param {(change: Change) => void} handler
   * @returns {Watch}
   */
  watch(pattern, handler) {
    this.#mustBeOpen()
    return this.#watches.add(pattern, handler)
  }

  /**
   * Gives a key a value; with `ifVersion` only if it has that version, 0: if it has no value.
   * @param {string} key
   * @param {any} value
   * @param {{ifVersion?: number, ttl?: number}} [options] `ttl` in milliseconds
   */
  set(key, value, { ifVersion, ttl } = {}) {
    const body = { type: 'set', key, value: value ?? null, if_version: ifVersion, ttl_ms: ttl }
    return this.#request(body, ifVersion !== undefined)
  }

  /** Deletes a key. `null` if there was none, unless `ifVersion` was asked for. */
  async delete(key, { ifVersion } = {}) {
    const once = ifVersion !== undefined
    const deleting = this.#request({ type: 'delete', key, if_version: ifVersion }, once)
    return once ? deleting : deleting.catch(unlessMissing)
  }

  /** The value of a key with its version, `null` if it has none. */
  async get(key) {
    const { values } = await this.#request({ type: 'get', key })
    return values[0] ?? null
  }

  /** All values that match a pattern, or with `limit` so many after the key `after`. */
  async values(pattern, { after, limit } = {}) {
    const all = []
    for (;;) {
      const request = { type: 'get', key: pattern, after, limit: limit ?? 1000 }
      const page = await this.#request(request)
      for (const value of page.values) all.push(value)
      if (limit || !page.next) return { ...page, values: all }
      after = page.next
    }
  }

  /** Is present in a topic, on every connection until `leave`. */
  async join(topic, info) {
    this.#joined.set(topic, info)
    try {
      await this.#request({ type: 'join', topic, info })
    } catch (error) {
      this.#joined.delete(topic)
      throw error
    }
  }

  async leave(topic) {
    this.#joined.delete(topic)
    // A new connection is not there anyway.
    await this.#request({ type: 'leave', topic }).catch(unlessMissing)
  }

  /** Asks the relay for its time. */
  async ping() {
    const { time } = await this.#request({ type: 'ping' })
    return { time }
  }

  /** Ends everything. What waits for an answer is rejected. */
  close() {
    this.#end(1000, 'closed by this client', new LandlineError('closed', 'the client was closed'))
  }

  // ---- the connection ----

  #open() {
    clearTimeout(this.#retry)
    const socket = new this.#WebSocket(this.#url, ['landline.v1'])
    this.#socket = socket
    this.#bye = null
    this.#pinged = null
    this.#openedAt = null
    socket.onopen = () => {
      const { user, client } = this.#options
      this.#ask({ type: 'hello', user, client }, answer => this.#welcome(answer), refusal => {
        if (TEMPORARY.includes(refusal.code)) return this.#lost(1006, refusal.message)
        this.#end(1000, refusal.message, refused(refusal), true)
      })
    }
    socket.onmessage = ({ data }) => this.#take(data)
    socket.onclose = ({ code, reason }) => this.#lost(code, reason)
    socket.onerror = () => {}
    this.#to('connecting')
    this.#alive = setTimeout(
      () => this.#lost(1006, 'the relay did not answer in time'), this.#options.connectWithin)
  }

  #welcome({ max_message_bytes }) {
    this.#messageMax = max_message_bytes
    this.#openedAt = now()
    clearTimeout(this.#alive)
    this.#alive = setTimeout(() => this.#watchOver(), this.#options.pingAfter)
    // Everything goes out in one go before anybody hears of it, so that the order is the same.
    this.#state = 'open'
    const asked = [...this.#requests.values()]
    for (const [topic, info] of this.#joined) {
      if (!asked.some(({ body }) => body.type === 'join' && body.topic === topic)) {
        this.#rejoin(topic, info)
      }
    }
    this.#follows.up()
    this.#watches.up()
    for (const request of asked) this.#resend(request)
    this.#emit('state', { state: 'open' })
  }

  /** Takes the connection for gone, whatever the socket thinks. */
  #lost(code, reason) {
    if (!this.#drop()) return
    const isFinal = [1002, 1003, 1007, 1009].includes(code) || (code >= 4000 && code < 4100)
    if (isFinal) {
      const why = reason || this.#bye?.reason || 'no reason given'
      const error = new LandlineError('dismissed', `the relay ended it with ${code}: ${why}`)
      this.#end(code, why, Object.assign(error, { closeCode: code }), true)
      return
    }
    const { backoffMin, backoffMax } = this.#options
    // Only a connection that held for a while begins a new count.
    if (this.#openedAt !== null && now() - this.#openedAt > 10 * backoffMin) this.#attempts = 0
    const attempt = this.#attempts++
    const ceiling = Math.min(backoffMax, backoffMin * 2 ** attempt)
    const backoff = Math.random() * ceiling
    const asked = code >= 4200 && code < 4300 ? 0 : this.#bye?.reconnect_after_ms
    // A relay that sends everybody away at once, again and again, is not obeyed without end.
    const retryIn = attempt < 3 ? (asked ?? backoff) : Math.max(asked ?? 0, backoff)
    this.#retry = setTimeout(() => this.#open(), retryIn)
    this.#to('waiting', { code, reason, retryIn })
  }

  /** Lets go of the socket. `false` if there was none. */
  #drop(code) {
    const socket = this.#socket
    if (!socket) return false
    this.#socket = null
    socket.onopen = socket.onmessage = socket.onclose = null
    if (code) socket.close(code)
    else if (socket.terminate) socket.terminate()
    else socket.close()
    clearTimeout(this.#alive)
    for (const pause of this.#pauses) clearTimeout(pause)
    this.#pauses.clear()
    this.#asks.clear()
    this.#follows.down()
    this.#watches.down()
    for (const request of [...this.#requests.values()]) {
      if (request.once && request.sent) this.#doubt(request)
      request.sent = false
    }
    return true
  }

  #end(code, reason, error, report = false) {
    if (this.#state === 'closed') return
    clearTimeout(this.#retry)
    this.#follows.save()
    this.#drop(1000)
    for (const undo of this.#cleanup.splice(0)) undo()
    this.#joined.clear()
    this.#follows.end(error)
    this.#watches.end()
    for (const request of [...this.#requests.values()]) this.#answered(request).reject(error)
    if (report) this.#emit('error', error)
    this.#to('closed', { code, reason })
    this.#handlers.clear()
  }

  /** There is reason to believe that the network is back. */
  #hurry() {
    if (this.#state === 'waiting') this.#open()
    else if (this.#state === 'open' && this.#pinged === null) this.#probe()
  }

  #watchOver() {
    const silence = now() - Math.max(this.#heard, this.#openedAt)
    if (this.#pinged !== null && this.#heard < this.#pinged) {
      this.#lost(1006, 'the relay was silent for too long')
      return
    }
    if (this.#pinged !== null && !this.#ponged) {
      // What came was perhaps on its way before the connection died: only the answer is proof.
      this.#pinged = now()
      this.#alive = setTimeout(() => this.#watchOver(), this.#options.pongWithin)
      return
    }
    this.#pinged = null
    const left = this.#options.pingAfter - silence
    // Timers may be early by a millisecond.
    if (left <= 1) this.#probe()
    else this.#alive = setTimeout(() => this.#watchOver(), left)
  }

  #probe() {
    clearTimeout(this.#alive)
    this.#pinged = now()
    this.#ponged = false
    const ponged = () => {
      this.#ponged = true
    }
    this.#ask({ type: 'ping' }, ponged, ponged)
    this.#alive = setTimeout(() => this.#watchOver(), this.#options.pongWithin)
  }

  #take(text) {
    this.#heard = now()
    let message
    try {
      message = JSON.parse(text)
    } catch {
      return
    }
    const { id, type } = message
    if (type === 'bye') {
      this.#bye = message
      this.#emit('bye', message)
    } else if (this.#asks.has(id)) {
      const { done, failed } = this.#asks.get(id)
      this.#asks.delete(id)
      if (type === 'error') failed(message)
      else done(message)
    } else if (this.#requests.has(id)) {
      this.#settle(this.#requests.get(id), message)
    } else if (type === 'error') {
      if (message.topic) this.#follows.lack(message.topic)
      this.#emit('error', refused(message))
    } else if (!this.#follows.take(message)) {
      this.#watches.take(message)
    }
  }

  #send(body) {
    if (this.#socket?.readyState === 1) this.#socket.send(JSON.stringify(body))
  }

  /** Asks something that concerns this connection alone. */
  #ask(body, done = () => {}, failed = () => {}) {
    const id = ++this.#ids
    this.#asks.set(id, { done, failed })
    this.#send({ ...body, id })
    return id
  }

  /** Does something after a pause, unless the connection is gone by then. */
  #later(what, wait) {
    const pause = setTimeout(() => {
      this.#pauses.delete(pause)
      what()
    }, wait)
    this.#pauses.add(pause)
  }

  // ---- requests ----

  /** Asks until there is an answer; with `once` never on two connections. */
  async #request(body, once = false) {
    const id = ++this.#ids
    const text = JSON.stringify({ ...body, id })
    const size = bytes(text)
    this.#mustBeOpen()
    if (size > this.#messageMax) throw tooLarge(size, this.#messageMax)
    const { maxQueued, maxQueuedBytes } = this.#options
    if (this.#requests.size >= maxQueued || this.#queuedBytes + size > maxQueuedBytes) {
      const message = `${this.#requests.size} requests wait for their answer already`
      throw new LandlineError('queue_full', message)
    }
    return new Promise((resolve, reject) => {
      const request = { id, body, text, size, once, resolve, reject, sent: false, first: null }
      this.#requests.set(id, request)
      this.#queuedBytes += size
      if (this.#state === 'open') this.#resend(request)
    })
  }

  #resend(request) {
    if (!this.#requests.has(request.id)) return
    if (request.size > this.#messageMax) {
      this.#answered(request).reject(tooLarge(request.size, this.#messageMax))
      return
    }
    const isLate = request.first !== null && now() - request.first > this.#options.resendWithin
    if (isLate && request.body.type === 'publish') {
      this.#doubt(request)
      return
    }
    request.first ??= now()
    request.sent = true
    this.#socket.send(request.text)
  }

  #settle(request, message) {
    if (message.type !== 'error') {
      const { type, id, ...answer } = message
      this.#answered(request).resolve(answer)
    } else if (message.code !== 'internal' && TEMPORARY.includes(message.code)) {
      // Nothing was done, so nothing is in doubt.
      request.sent = false
      this.#later(() => this.#resend(request), message.retry_after_ms ?? 1000)
    } else {
      this.#answered(request).reject(refused(message))
    }
  }

  #answered(request) {
    this.#requests.delete(request.id)
    this.#queuedBytes -= request.size
    return request
  }

  #doubt(request) {
    const message = 'it was sent, and the connection ended before the answer'
    this.#answered(request).reject(new LandlineError('unknown', message))
  }

  #rejoin(topic, info) {
    this.#ask({ type: 'join', topic, info }, undefined, refusal => {
      if (TEMPORARY.includes(refusal.code)) {
        const again = () => this.#joined.has(topic) && this.#rejoin(topic, info)
        this.#later(again, refusal.retry_after_ms ?? 2000)
        return
      }
      this.#joined.delete(topic)
      this.#emit('error', refused({ ...refusal, topic }))
    })
  }

  // ---- handlers ----

  #to(state, more) {
    if (state === this.#state && !more) return
    this.#state = state
    this.#emit('state', { state, ...more })
  }

  #emit(name, detail) {
    const handlers = this.#handlers.get(name)
    // A loss or an error that nobody listens for is not to pass in silence.
    if (!handlers?.size && (name === 'error' || name === 'gap')) console.warn('landline', detail)
    for (const handler of [...(handlers ?? [])]) {
      this.#call(handler, detail, name === 'error')
    }
  }

  /** Calls a handler of the program, whose failure is its own. */
  #call(handler, value, isLast = false) {
    const report = error => (isLast ? console.error(error) : this.#emit('error', error))
    try {
      const outcome = handler(value)
      if (typeof outcome?.then === 'function') outcome.then(undefined, report)
    } catch (error) {
      report(error)
    }
  }

  #listen(target, name, handler) {
    if (!target?.addEventListener) return
    target.addEventListener(name, handler)
    this.#cleanup.push(() => target.removeEventListener(name, handler))
  }

  #mustBeOpen() {
    if (this.#state === 'closed') throw new LandlineError('closed', 'the client was closed')
  }
}

/** What `subscribe` returns. */
class Subscription {
  #part
  /** Fulfilled when the relay has said where it begins; rejected if it refuses. @type {Promise} */
  ready
  /** @type {string} */
  topic

  constructor(part, topic, ready) {
    this.#part = part
    this.topic = topic
    this.ready = ready
  }

  /** The events of its topics were dealt with up to these. @returns {Object<string, Position>} */
  get positions() {
    return this.#part.positions(this)
  }

  /** Says that `event`, and all of its topic before it, were dealt with. @param {Event} event */
  ack(event) {
    this.#part.ack(this, event)
  }

  unsubscribe() {
    this.#part.remove(this)
  }
}

/**
 * Which subscription gets which event.
 *
 * The relay has one cursor per topic for the connection, while subscriptions may overlap. So each
 * has a position of its own per topic, takes the event after it and nothing else:
 *
 *   what lies before it    was for another one: skipped
 *   what lies beyond it    the relay's cursor is too far: it is asked to go back to the position
 *
 * Whatever the relay says about a topic (`subscribed`, `attached`) goes through `#place`, which
 * compares every position with it; a new connection, a new subscription and going back are one.
 */
class Follows {
  #link
  #url
  /** Subscription to what is known about it. */
  #subs = new Map()
  /** Name or pattern to what this connection does for it. */
  #groups = new Map()
  /** Topic to where the connection is in it. */
  #topics = new Map()
  /** Topics that were asked for by name only to go back. */
  #named = new Set()
  #saving = null

  constructor(link, url) {
    this.#link = link
    this.#url = url
  }

  add(topic, handler, { from = 'live', ack, consumer, window, slow, store }) {
    const acks = Boolean(ack || consumer)
    for (const other of this.#subs.values()) {
      if ((acks || other.acks) && overlap(other.topic, topic)) {
        const message = `${topic} and ${other.topic} overlap, and one of them acknowledges`
        throw new LandlineError('bad_request', message)
      }
      if (store && other.store && other.topic === topic && !acks) {
        throw new LandlineError('bad_request', `the position in ${topic} is kept already`)
      }
    }
    let settle
    const ready = new Promise((resolve, reject) => (settle = { resolve, reject }))
    ready.catch(() => {})
    const handle = new Subscription(this, topic, ready)
    const kept = acks ? undefined : store
    const sub = {
      ...{ handle, topic, handler, acks, consumer, window, slow, settle, store: kept },
      ...{ from: this.#saved(kept, topic) ?? from, waiting: true, dirty: false, at: new Map() },
    }
    const given = isPattern(topic) ? sub.from.positions : sub.from.epoch && { [topic]: sub.from }
    for (const [name, { epoch, seq }] of Object.entries((!consumer && given) || {})) {
      sub.at.set(name, { epoch, seq, acked: seq, high: seq })
    }
    this.#subs.set(handle, sub)
    for (const known of this.#topics.values()) known.subs = null
    this.#advance(topic)
    return handle
  }

  remove(handle) {
    const sub = this.#subs.get(handle)
    if (!sub) return
    if (sub.dirty) this.save()
    this.#subs.delete(handle)
    for (const known of this.#topics.values()) known.subs = null
    sub.settle.reject(new LandlineError('closed', 'the subscription was ended'))
    const group = this.#groups.get(sub.topic)
    if (group && ![...this.#subs.values()].some(({ topic }) => topic === sub.topic)) {
      this.#groups.delete(sub.topic)
      if (!this.#named.has(sub.topic)) this.#link.ask({ type: 'unsubscribe', topic: sub.topic })
    } else if (group?.starter === sub) {
      group.starter = null
    }
    for (const name of [...this.#topics.keys()]) {
      if (this.#covering(name).length) continue
      this.#topics.delete(name)
      if (this.#named.delete(name)) this.#link.ask({ type: 'unsubscribe', topic: name })
    }
  }

  ack(handle, { topic, epoch, seq }) {
    const sub = this.#subs.get(handle)
    const at = sub?.at.get(topic)
    if (!sub?.acks) throw new LandlineError('bad_request', 'this subscription does not acknowledge')
    // What belongs to another life of the topic, or was said before, has no meaning any more.
    if (at?.epoch !== epoch || seq <= at.acked) return
    at.acked = seq
    // What this connection has not brought yet is acknowledged when it comes.
    if (seq <= this.#topics.get(topic)?.seq) this.#link.send({ type: 'ack', topic, seq })
  }

  positions(handle) {
    const sub = this.#subs.get(handle)
    const listed = [...(sub?.at ?? [])].map(([name, at]) => {
      return [name, { epoch: at.epoch, seq: sub.acks ? at.acked : at.seq }]
    })
    return Object.fromEntries(listed)
  }

  up() {
    // Names first, so that patterns share the cursors that these put in place.
    const topics = new Set([...this.#subs.values()].map(({ topic }) => topic))
    const sorted = [...topics].sort((a, b) => isPattern(a) - isPattern(b))
    for (const topic of sorted) this.#advance(topic)
  }

  down() {
    this.#groups.clear()
    this.#topics.clear()
    this.#named.clear()
    for (const sub of this.#subs.values()) {
      if (sub.acks) for (const at of sub.at.values()) at.seq = at.acked
    }
  }

  end(error) {
    for (const { settle } of this.#subs.values()) settle.reject(error)
    this.#subs.clear()
    clearTimeout(this.#saving)
  }

  take(message) {
    switch (message.type) {
      case 'event':
        this.#event(message)
        return true
      case 'gap':
        this.#gap(message)
        return true
      case 'attached':
        this.#attached(message)
        return true
      default:
        return false
    }
  }

  /** The relay will not attach this topic, which it may have counted among those that match. */
  lack(topic) {
    for (const [pattern, group] of this.#groups) {
      if (group.busy && group.left > 0 && overlap(pattern, topic)) this.#count(group)
    }
  }

  /** Writes down the positions of the subscriptions that keep theirs. */
  save() {
    clearTimeout(this.#saving)
    this.#saving = null
    for (const sub of this.#subs.values()) {
      if (!sub.dirty) continue
      sub.dirty = false
      try {
        sub.store.setItem(this.#key(sub.topic), JSON.stringify(this.positions(sub.handle)))
      } catch (error) {
        this.#link.emit('error', error)
      }
    }
  }

  #saved(store, topic) {
    try {
      const positions = JSON.parse(store?.getItem(this.#key(topic)) ?? 'null')
      return positions && (isPattern(topic) ? { positions } : positions[topic])
    } catch {
      // What somebody else left there is no position.
      return undefined
    }
  }

  #key(topic) {
    return `landline ${this.#url} ${topic}`
  }

  /** Does the next thing that the subscriptions to `topic` need. */
  #advance(topic) {
    if (!this.#link.isOpen()) return
    if (!this.#groups.has(topic)) {
      this.#groups.set(topic, { topic, held: false, busy: false, left: 0, starter: null })
    }
    const group = this.#groups.get(topic)
    if (group.busy) return
    const subs = [...this.#subs.values()].filter(sub => sub.topic === topic)
    const started = subs.find(({ waiting }) => !waiting)
    const starter = started && !group.held ? null : subs.find(({ waiting }) => waiting)
    if (group.held && !starter) return
    const sub = starter ?? started
    const { acks, consumer, window, slow } = sub
    group.busy = true
    group.starter = starter
    group.left = null
    const isResumed = !starter || (isPattern(topic) && sub.from.positions)
    const from = isResumed ? this.#resumeFrom(topic) : sub.from
    const body = { type: 'subscribe', topic, from, ack: acks || undefined, consumer, window, slow }
    this.#link.ask(body, answer => this.#subscribed(group, answer), refusal => {
      group.busy = false
      this.#refuse(sub, refusal)
    })
  }

  #refuse(sub, refusal) {
    const { topic, waiting } = sub
    const passes = TEMPORARY.includes(refusal.code)
    if (passes || (!waiting && refusal.code === 'limit_exceeded')) {
      this.#link.later(() => this.#subs.has(sub.handle) && this.#advance(topic),
        refusal.retry_after_ms ?? 2000)
      return
    }
    sub.settle.reject(refused(refusal))
    this.remove(sub.handle)
    this.#link.emit('error', Object.assign(refused(refusal), { subscription: sub.handle }))
    this.#advanceIfUsed(topic)
  }

  #advanceIfUsed(topic) {
    if ([...this.#subs.values()].some(sub => sub.topic === topic)) this.#advance(topic)
  }

  #resumeFrom(topic) {
    if (!isPattern(topic)) return this.#lowest(topic)
    const positions = {}
    // A topic that is left out comes from its beginning, and what was seen of it is skipped.
    let room = this.#link.messageMax() - 2048
    let count = 0
    const names = new Set([...this.#subs.values()].flatMap(sub => [...sub.at.keys()]))
    for (const name of names) {
      if (!overlap(topic, name)) continue
      room -= bytes(JSON.stringify(name)) + 64
      if (room < 0 || ++count > POSITIONS_MAX) break
      positions[name] = this.#lowest(name)
    }
    return { positions }
  }

  /** The lowest position that any subscription has in a topic. */
  #lowest(topic) {
    let lowest
    for (const sub of this.#subs.values()) {
      const at = overlap(sub.topic, topic) && sub.at.get(topic)
      if (at && (!lowest || at.seq < lowest.seq)) lowest = { epoch: at.epoch, seq: at.seq }
    }
    return lowest
  }

  #covering(topic) {
    const known = this.#topics.get(topic)
    known.subs ??= [...this.#subs.values()].filter(sub => overlap(sub.topic, topic))
    return known.subs
  }

  #subscribed(group, answer) {
    if (this.#groups.get(group.topic) !== group) return
    group.held = true
    if (isPattern(group.topic)) {
      // So many `attached` follow that belong to this request.
      group.left = answer.attached + 1
    } else {
      group.left = 1
      this.#place(group.topic, answer, group.starter, !answer.shared)
    }
    this.#count(group)
  }

  #attached(message) {
    const group = this.#groups.get(message.pattern)
    if (!group) return
    const isInitial = group.busy && group.left > 0
    this.#place(message.topic, message, isInitial ? group.starter : null, false)
    if (isInitial) this.#count(group)
  }

  /** One more of the answers that belong together has come. */
  #count(group) {
    group.left--
    if (group.left > 0) return
    group.busy = false
    if (group.starter) {
      group.starter.waiting = false
      group.starter.settle.resolve()
    }
    this.#advanceIfUsed(group.topic)
  }

  /** The relay has said what there is of a topic: brings every position in line with it. */
  #place(topic, { epoch, seq, first, tail, shared, recovery }, starter, isExact) {
    let known = this.#topics.get(topic)
    if (known?.epoch !== epoch) {
      known = { epoch, seq, tail, back: false, subs: null }
      this.#topics.set(topic, known)
    }
    // An answer may be older than what came before it.
    known.tail = Math.max(known.tail, tail)
    if (isExact || !shared) known.seq = seq
    const facts = { epoch, seq, first, tail: known.tail, shared, recovery }
    for (const sub of this.#covering(topic)) {
      if (sub.waiting && sub !== starter && !sub.at.has(topic)) continue
      this.#line(sub, topic, facts, sub === starter)
    }
    this.#check(topic)
  }

  /** Brings the position of one subscription in line with the facts of its topic. */
  #line(sub, topic, { epoch, seq, first, tail, shared, recovery }, isStarter) {
    let at = sub.at.get(topic)
    const put = to => {
      const old = sub.consumer && at?.epoch === epoch ? at : { acked: to, high: to }
      at = { epoch, seq: to, acked: Math.max(old.acked, to), high: Math.max(old.high, to) }
      sub.at.set(topic, at)
      this.#changed(sub)
    }
    if (sub.consumer) {
      // Where a consumer goes on is up to the relay.
      put(seq)
      const [from, to] = recovery?.missing ?? []
      if (recovery?.reason) this.#lose(sub, topic, from, to, recovery.reason)
      return
    }
    if (!at) put(isStarter ? begin(sub.from, { seq, first, tail, shared }) : 0)
    const reason =
      at.epoch !== epoch ? 'epoch_changed'
      : at.seq > tail ? 'ahead'
      : at.seq < first - 1 && 'truncated'
    if (!reason) return
    const from = reason === 'truncated' ? at.seq + 1 : 1
    put(first - 1)
    this.#lose(sub, topic, from, first - 1, reason)
  }

  /** Makes the relay go back if it is ahead of anybody. */
  #check(topic) {
    const known = this.#topics.get(topic)
    // A handler may have ended what was going on.
    if (!known) return
    const behind = at => at && at.epoch === known.epoch && at.seq < known.seq
    const late = this.#covering(topic).find(sub => behind(sub.at.get(topic)))
    if (!late || known.back) return
    if (late.acks) {
      this.#link.again('an event was missing')
      return
    }
    known.back = true
    this.#named.add(topic)
    const { slow } = late
    const body = { type: 'subscribe', topic, from: this.#lowest(topic), slow }
    this.#link.ask(body, answer => {
      if (this.#topics.get(topic) !== known) return
      known.back = false
      this.#place(topic, answer, null, true)
    }, refusal => this.#link.again(refusal.message))
  }

  #event(message) {
    const { type, ...event } = message
    const { topic, seq } = event
    const known = this.#topics.get(topic)
    if (!known) return
    known.seq = seq
    known.tail = Math.max(known.tail, seq)
    event.epoch = known.epoch
    for (const sub of this.#covering(topic)) {
      const at = sub.at.get(topic)
      if (!at || !this.#subs.has(sub.handle) || at.epoch !== known.epoch) continue
      if (seq <= (sub.acks ? at.acked : at.seq)) {
        // It was acknowledged while there was no connection.
        if (sub.acks) {
          at.seq = seq
          this.#link.send({ type: 'ack', topic, seq })
        }
        continue
      }
      if (seq > at.seq + 1) {
        this.#check(topic)
        continue
      }
      at.seq = seq
      const isAgain = sub.acks && seq <= at.high
      at.high = Math.max(at.high, seq)
      this.#changed(sub)
      const { since } = sub.from
      if (since === undefined || event.time >= since) {
        this.#link.call(sub.handler, isAgain ? { ...event, redelivered: true } : { ...event })
      }
    }
  }

  #gap({ topic, from, to, reason }) {
    const known = this.#topics.get(topic)
    if (!known) return
    known.seq = to
    known.tail = Math.max(known.tail, to)
    for (const sub of this.#covering(topic)) {
      const at = sub.at.get(topic)
      if (!at || !this.#subs.has(sub.handle) || at.epoch !== known.epoch) continue
      if (to <= (sub.acks ? at.acked : at.seq)) continue
      if (from > at.seq + 1) {
        this.#check(topic)
        continue
      }
      const start = sub.acks ? Math.max(from, at.acked + 1) : at.seq + 1
      if (from <= at.acked + 1) at.acked = to
      at.seq = to
      at.high = Math.max(at.high, to)
      this.#changed(sub)
      this.#lose(sub, topic, start, to, reason)
    }
  }

  #lose(sub, topic, from, to, reason) {
    const reset = reason === 'epoch_changed' || reason === 'ahead'
    const isKnown = from <= to
    const range = { from: isKnown ? from : null, to: isKnown ? to : null }
    this.#link.emit('gap', { topic, ...range, reason, reset, subscription: sub.handle })
  }

  #changed(sub) {
    if (!sub.store) return
    sub.dirty = true
    this.#saving ??= setTimeout(() => this.save(), SAVE_AFTER)
  }
}

/** Where a subscription begins: as the relay says, unless its cursor serves others too. */
function begin(from, { seq, first, tail, shared }) {
  if (from.positions) return 0
  if (!shared) return seq
  if (from === 'live') return tail
  // Events before a time are passed over as they come.
  if (from === 'start' || from.since !== undefined) return first - 1
  return from.last === undefined ? 0 : Math.max(first - 1, tail - from.last)
}

/** What `watch` returns. */
class Watch {
  #part
  /** @type {string} */
  pattern
  /** The present values by key, each as it came. @type {Map<string, Change>} */
  values

  constructor(part, pattern, values) {
    this.#part = part
    this.pattern = pattern
    this.values = values
  }

  unwatch() {
    this.#part.remove(this)
  }
}

/**
 * Which watch gets which change.
 *
 * The connection has one position in each of the two states, of clients and of the relay (`$`).
 * Between `watching` and `synced` only the watch that begins gets something, and the position
 * stays; what comes outside of these stretches is for all, by rising version.
 */
class Watches {
  #link
  #patterns = new Map()
  #handlers = new Map()
  /** For each state: the position, and the pattern of the stretch that is going on. */
  #states = [{ at: null, stretch: null }, { at: null, stretch: null }]

  constructor(link) {
    this.#link = link
  }

  add(pattern, handler) {
    let group = this.#patterns.get(pattern)
    if (!group) {
      group = { pattern, stage: 'idle', ask: 0, resume: null, seen: 0 }
      Object.assign(group, { values: new Map(), given: new Map(), watches: new Set() })
      this.#patterns.set(pattern, group)
    }
    const watch = new Watch(this, pattern, group.values)
    group.watches.add(watch)
    this.#handlers.set(watch, handler)
    const ridesAlong = group.stage === 'asked' && !group.resume
    if (!ridesAlong) {
      // Only the relay knows what there is, so the pattern begins anew for all.
      group.resume = null
      this.#ask(group)
    }
    return watch
  }

  remove(watch) {
    const group = this.#patterns.get(watch.pattern)
    this.#handlers.delete(watch)
    if (!group?.watches.delete(watch) || group.watches.size) return
    this.#patterns.delete(watch.pattern)
    if (group.stage === 'idle') return
    const ended = () => {
      const state = this.#state(watch.pattern)
      const isOver = state.stretch === watch.pattern && !this.#patterns.has(watch.pattern)
      if (isOver) state.stretch = null
    }
    this.#link.ask({ type: 'unwatch', pattern: watch.pattern }, ended)
  }

  up() {
    for (const group of this.#patterns.values()) this.#ask(group)
  }

  down() {
    for (const group of this.#patterns.values()) {
      if (group.stage === 'live') group.resume = { ...this.#state(group.pattern).at }
      group.stage = 'idle'
    }
    for (const state of this.#states) state.stretch = null
  }

  end() {
    this.#patterns.clear()
    this.#handlers.clear()
  }

  take(message) {
    if (message.type === 'watching') this.#watching(message)
    else if (message.type === 'state') this.#changed(message)
    else if (message.type === 'synced') this.#synced(message)
  }

  #state(name) {
    return this.#states[name.startsWith('$') ? 1 : 0]
  }

  #ask(group) {
    if (!this.#link.isOpen()) return
    const { pattern } = group
    group.stage = 'asked'
    const body = { type: 'watch', pattern, from: group.resume ?? undefined }
    const id = this.#link.ask(body, answer => this.#watching(answer), refusal => {
      const state = this.#state(pattern)
      if (state.stretch === pattern) state.stretch = null
      if (this.#patterns.get(pattern) !== group || group.ask !== id) return
      const isStarted = group.resume || group.values.size
      if (TEMPORARY.includes(refusal.code) || (isStarted && refusal.code === 'limit_exceeded')) {
        const again = () => this.#patterns.get(pattern) === group && this.#ask(group)
        this.#link.later(again, refusal.retry_after_ms ?? 2000)
        return
      }
      this.#patterns.delete(pattern)
      for (const watch of group.watches) this.#handlers.delete(watch)
      this.#link.emit('error', Object.assign(refused(refusal), { pattern }))
    })
    group.ask = id
  }

  #watching({ id, pattern, epoch, reset }) {
    const state = this.#state(pattern)
    state.stretch = pattern
    if (state.at?.epoch !== epoch) state.at = { epoch, version: 0 }
    const group = this.#patterns.get(pattern)
    if (!group || (id !== undefined && id !== group.ask)) return
    if (id === undefined && group.stage === 'live') {
      // The relay begins all watches of the state anew, one after the other: none of them can go
      // on from the position before its turn has come.
      for (const other of this.#patterns.values()) {
        if (other.stage !== 'live' || this.#state(other.pattern) !== state) continue
        other.stage = 'behind'
        other.resume = null
      }
    }
    group.stage = 'catching'
    if (!reset) return
    group.resume = null
    group.seen = 0
    group.values.clear()
    group.given.clear()
    this.#tell(group, { type: 'reset' })
  }

  #changed(change) {
    const state = this.#state(change.key)
    const { key, version } = change
    if (state.stretch !== null) {
      const group = this.#patterns.get(state.stretch)
      if (group?.stage !== 'catching' || !(version > (group.given.get(key) ?? 0))) return
      group.given.set(key, version)
      this.#give(group, change)
      return
    }
    if (state.at) state.at.version = Math.max(state.at.version, version)
    for (const group of [...this.#patterns.values()]) {
      const isGoing = group.stage === 'live' || group.stage === 'behind'
      if (!isGoing || version <= group.seen || !overlap(group.pattern, key)) continue
      group.seen = version
      this.#give(group, change)
    }
  }

  #synced({ pattern, version }) {
    const state = this.#state(pattern)
    if (state.stretch === pattern) state.stretch = null
    if (state.at) state.at.version = Math.max(state.at.version, version)
    const group = this.#patterns.get(pattern)
    if (group?.stage !== 'catching') return
    group.stage = 'live'
    group.given.clear()
    group.seen = Math.max(group.seen, version)
    this.#tell(group, { type: 'synced', version })
  }

  #give(group, change) {
    if (change.deleted) group.values.delete(change.key)
    else group.values.set(change.key, change)
    this.#tell(group, change)
  }

  #tell(group, change) {
    for (const watch of [...group.watches]) {
      const handler = this.#handlers.get(watch)
      if (handler) this.#link.call(handler, change)
    }
  }
}

function refused({ code, message, field, topic, version, retry_after_ms }) {
  return new LandlineError(code, message, { field, topic, version, retryAfter: retry_after_ms })
}

function tooLarge(size, max) {
  return new LandlineError('too_large', `the message has ${size} bytes; the relay takes ${max}`)
}

function unlessMissing(error) {
  if (error.code === 'not_found') return null
  throw error
}
