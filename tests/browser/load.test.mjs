// The dashboard stays usable where there is much: topics, connections, events. How long a click takes and how
// long the page was busy at a stretch are said, and only roughly bounded: the machine has other things to do.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import test from 'node:test'
import { fileURLToPath } from 'node:url'
import { browser, client, dashboard, follows, go, isOpen, relay, until } from './support.mjs'

/** Starts a process that works beside the test until it ends. */
function beside(t, script, ...words) {
  const file = fileURLToPath(new URL(script, import.meta.url))
  const child = spawn(process.execPath, [file, ...words.map(String)], {
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  t.after(() => child.kill('SIGKILL'))
  return child
}

/** Has the page note when it was busy for longer than 50 ms, and how long clicks took until they were painted. */
const watchOver = made => made.evaluate(() => {
  const its = globalThis.its = { stretches: [], clicks: [] }
  const observe = (into, options) => new PerformanceObserver(list => {
    for (const { name, duration } of list.getEntries()) if (name !== 'pointerdown') into.push(duration)
  }).observe(options)
  observe(its.stretches, { type: 'longtask' })
  observe(its.clicks, { type: 'event', durationThreshold: 16 })
})

/** Clicks so often, and says how long the page took. */
async function clicks(made, what, selector, times = 10) {
  for (let n = 0; n < times; n++) await made.locator(selector).first().click()
  const { stretches, clicks } = await made.evaluate(() => globalThis.its)
  const [click, stretch] = [clicks, stretches].map(all => Math.round(Math.max(0, ...all)))
  console.log(`${what}: a click is painted after ${click} ms at most; busy for ${stretch} ms at a stretch at most, `
    + `${stretches.length} times longer than 50 ms`)
  assert.ok(click < 2000, `${click} ms`)
}

test('2,000 topics are listed, sorted, filtered and turned over', async t => {
  const node = await relay(t)
  const publisher = client(t, node.url(), { maxQueued: 2500 })
  await isOpen(publisher)
  const name = n => `site/${n % 20}/sensor/${n}`
  await Promise.all(Array.from({ length: 2000 }, (_, n) => publisher.publish(name(n), n)))
  const made = await dashboard(await browser(t), node.url())
  await watchOver(made)
  await go(made, 'topics')
  const table = made.locator('#s-topics')
  await table.locator('.summary', { hasText: '2,000 topics' }).waitFor()
  assert.equal(await table.locator('tbody tr').count(), 50)
  assert.equal(await table.locator('.pager p').innerText(), '1 to 50 of 2,000')
  await table.getByRole('button', { name: 'Next' }).click()
  await table.locator('.pager p', { hasText: '51 to 100' }).waitFor()
  await table.getByLabel('Filter by text').fill('sensor/1999')
  await table.locator('.summary', { hasText: '1 of 2,000 topics' }).waitFor()
  await table.locator('tbody a', { hasText: name(1999) }).waitFor()
  await table.getByLabel('Filter by text').fill('')
  await clicks(made, '2,000 topics', '#s-topics thead button')
  assert.deepEqual(made.its.errors, [])
})

test('5,000 connections are listed, and the page does not notice', async t => {
  const node = await relay(t)
  const crowd = beside(t, './crowd.mjs', node.port, 5000)
  let isThere = false
  crowd.stdout.on('data', () => (isThere = true))
  const made = await dashboard(await browser(t), node.url())
  await until('the crowd', () => isThere, 60_000)
  await made.locator('#badge-connections', { hasText: /^5,00\d$/ }).waitFor()
  await watchOver(made)
  await go(made, 'connections')
  await made.locator('#s-connections .summary', { hasText: /^5,00\d connections$/ }).waitFor()
  assert.equal(await made.locator('#s-connections tbody tr').count(), 50)
  await clicks(made, '5,000 connections', '#s-connections thead button')
  await made.locator('#s-connections').getByLabel('Filter by text').fill('dashboard')
  await made.locator('#s-connections .summary', { hasText: /^1 of 5,00\d/ }).waitFor()
  assert.match(await made.locator('#s-connections tbody').innerText(), /^c\d+ \(here\)/)
  assert.deepEqual(made.its.errors, [])
})

test('10,000 events per second: the tail shows some, says what it skips, and can be worked with', async t => {
  const node = await relay(t)
  const made = await dashboard(await browser(t), node.url(), 'tail')
  await follows(made, '#')
  beside(t, './flood.mjs', node.port, 10_000, 'flood')
  const fact = async name => {
    const text = await made.locator('#tail-facts div', { hasText: new RegExp(`^${name}`) }).innerText()
    return Number(text.replaceAll(',', '').match(/\d+/)[0])
  }
  await until('the flood', async () => (await fact('Rate')) > 5000)
  await watchOver(made)
  await until('some seconds of it', async () => (await fact('Received')) > 50_000)
  const [events, skipped] = [await fact('Rate'), await fact('Skipped')]
  console.log(`the tail gets ${events} events per second and skips ${skipped}`)
  assert.ok(skipped > events / 2, `${skipped} of ${events}`)
  await made.locator('#tail-events .note', { hasText: /^[\d,]+ events skipped here/ }).first().waitFor()
  assert.ok((await made.locator('#tail-events li').count()) <= 500)

  await clicks(made, '10,000 events per second', '#tail-pause', 9)
  await made.locator('#tail-facts', { hasText: 'newer events' }).waitFor()
  const first = await made.locator('#tail-events .seq').first().innerText()
  await until('more of them', async () => (await fact('Received')) > 100_000)
  assert.equal(await made.locator('#tail-events .seq').first().innerText(), first)
  await made.locator('#tail-pause').click()

  // Rows stand by falling sequence, and a row says how many are not there: together they are all.
  // A browser that had no time may also have a gap of the relay, or a note of one.
  const rows = await made.locator('#tail-events li').evaluateAll(rows => rows.map(row => {
    const number = text => Number(text?.match(/[\d,]+/)[0].replaceAll(',', '') ?? 0)
    if (row.className === 'note') return { skipped: number(row.textContent) + number(row.textContent.split(' of ')[1]) }
    if (row.className === 'gap') return { gap: number(row.textContent.split('event')[1]) }
    return { seq: Number(row.querySelector('.seq').textContent) }
  }))
  assert.ok(rows.some(({ skipped }) => skipped))
  let next = rows.find(({ seq }) => seq).seq + 1
  for (const { skipped, gap, seq } of rows) {
    if (skipped) next -= skipped
    else if (gap) next = gap
    else assert.equal(seq, --next)
  }
  await made.getByLabel('Filter by text').first().fill('no such text')
  await made.locator('#tail-facts', { hasText: 'do not match' }).waitFor()
  await go(made, 'overview')
  await made.locator('.chart .value').first().waitFor()
  assert.deepEqual(made.its.errors, [])
})
