// The client for browsers, and a browser's own, in a real one: offline, hidden, with a relay that is killed. Whatever
// happens, a page ends with every event exactly once and in order, or it was told of a gap that says exactly what is missing.
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import {
  browser, cable, client, durable, isOpen, pace, page, range, relay, until,
} from './support.mjs'
import { tabs } from './tabs.mjs'

/**
 * The ways in which a page can follow a topic. Each is run in a page of the relay, keeps what it gets in
 * `its.seen` (numbers), `its.gaps` and `its.states`, and resolves when it follows.
 */
const WAYS = {
  'landline.js': async ({ topic, from }) => {
    const { connect } = await import('/landline.js')
    const its = globalThis.its = { seen: [], gaps: [], states: [] }
    const relay = its.relay = connect(undefined, { backoffMin: 50, backoffMax: 500 })
    relay.on('gap', ({ from, to, reason, reset }) => its.gaps.push({ from, to, reason, reset, at: its.seen.length }))
    relay.on('state', ({ state, reason }) => its.states.push(`${state}: ${reason ?? ''}`))
    await relay.subscribe(topic, ({ data }) => its.seen.push(data), { from }).ready
  },
  'EventSource': async ({ topic, from }) => {
    const its = globalThis.its = { seen: [], gaps: [], states: [] }
    const source = its.source = new EventSource(`/v1/topics/${topic}/events?from=${from}`)
    source.onmessage = ({ data }) => its.seen.push(JSON.parse(data).data)
    source.onerror = () => its.states.push(['connecting', 'open', 'closed'][source.readyState])
    source.addEventListener('gap', ({ data }) => {
      const { from = null, to = null, reason } = JSON.parse(data)
      its.gaps.push({ from, to, reason, reset: reason !== 'truncated', at: its.seen.length })
    })
    await new Promise(resolve => source.addEventListener('subscribed', resolve, { once: true }))
  },
}

/** Has a page follow the topic in one of the ways. */
async function follow(made, way) {
  await made.evaluate(WAYS[way], { topic: 'count', from: 'start' })
  const look = () => made.evaluate(() => {
    const { seen, gaps, states } = globalThis.its
    return { seen, gaps, states }
  })
  return { made, look, seen: () => made.evaluate(() => globalThis.its.seen) }
}

/** A page of a relay that follows the topic. */
async function follower(t, url, way) {
  const context = await browser(t)
  const made = await page(context)
  await made.goto(`${url}/readyz`)
  return { context, ...await follow(made, way) }
}

/** Publishes 1, 2, 3 and so on until it is told to stop; returns how many there are. */
function counter(t, node) {
  const publisher = client(t, node.url())
  const its = { count: 0, isOn: true }
  its.stopped = (async () => {
    while (its.isOn) {
      await publisher.publish('count', its.count + 1)
      its.count++
      await pace()
    }
    return its.count
  })()
  its.stop = () => {
    its.isOn = false
    return its.stopped
  }
  return its
}

for (const way of Object.keys(WAYS)) {
  describe(`${way} in Chromium`, { concurrency: true }, () => {
    test('offline for 30 seconds while events are published: all come, once and in order', async t => {
      const node = await relay(t, '--max-events', '1000000')
      const line = await cable(t, node)
      const { context, look, seen } = await follower(t, line.url, way)
      const counting = counter(t, node)
      await until('the first events', async () => (await seen()).length > 10)
      line.pull()
      await context.setOffline(true)
      const from = performance.now()
      const before = counting.count
      // What was on its way through the cable still arrives.
      await until('5 seconds', () => performance.now() - from > 5000)
      const had = (await seen()).length
      await until('30 seconds', () => performance.now() - from > 30_000, 40_000)
      assert.equal((await seen()).length, had)
      const meanwhile = counting.count - before
      // A stream only listens: it takes the word of the machine for the end of its connection.
      line.plug({ word: way === 'EventSource' })
      await context.setOffline(false)
      await until('the page to be back', async () => (await seen()).length > had)
      const count = await counting.stop()
      // Longer than it takes to find out that a connection is dead.
      await until('the rest', async () => (await seen()).length >= count, 60_000)
      const { seen: all, gaps, states } = await look()
      console.log(`${meanwhile} events while offline, ${count} in all; ${states.join(', ')}`)
      assert.ok(meanwhile > 1000)
      assert.deepEqual(all, range(1, count))
      assert.deepEqual(gaps, [])
    })

    test('hidden and frozen, then shown: nothing is missing', async t => {
      const node = await relay(t)
      const made = await tabs(t, `${node.url()}/readyz`)
      const { look, seen } = await follow(made, way)
      const counting = counter(t, node)
      await until('the first events', async () => (await seen()).length > 10)
      await made.evaluate(() => {
        globalThis.its.visible = []
        for (const name of ['visibilitychange', 'freeze', 'resume']) {
          const note = () => globalThis.its.visible.push(`${name} ${document.visibilityState}`)
          document.addEventListener(name, note)
        }
      })
      await made.hide()
      await made.freeze(true)
      const before = counting.count
      await until('events to pass by', () => counting.count > before + 500)
      await made.freeze(false)
      await made.show()
      const count = await counting.stop()
      await until('the rest', async () => (await seen()).length >= count)
      const { seen: all, gaps } = await look()
      assert.deepEqual(await made.evaluate(() => globalThis.its.visible), [
        'visibilitychange hidden', 'freeze hidden', 'resume hidden', 'visibilitychange visible',
      ])
      assert.deepEqual(all, range(1, count))
      assert.deepEqual(gaps, [])
    })

    test('a relay that is killed and comes back, durable: every event once and in order', async t => {
      const node = await relay(t, ...durable(t))
      const { look, seen } = await follower(t, node.url(), way)
      const counting = counter(t, node)
      for (let kills = 1; kills <= 3; kills++) {
        const so = (await seen()).length
        await until('some events', async () => (await seen()).length > so + 100)
        await node.end('SIGKILL')
        await node.start()
      }
      const count = await counting.stop()
      await until('the rest', async () => (await seen()).length >= count)
      const { seen: all, gaps } = await look()
      assert.deepEqual(all, range(1, count))
      assert.deepEqual(gaps, [])
    })

    test('a relay that is killed and comes back, in memory: a reset stands where it happened', async t => {
      const node = await relay(t)
      const { look, seen } = await follower(t, node.url(), way)
      const first = client(t, node.url())
      await isOpen(first)
      for (let n = 1; n <= 20; n++) await first.publish('count', n)
      await until('the first life', async () => (await seen()).length === 20)
      first.close()
      await node.end('SIGKILL')
      await node.start()
      const second = client(t, node.url())
      for (let n = 21; n <= 40; n++) await second.publish('count', n)
      await until('the second life', async () => (await seen()).length === 40)
      const { seen: all, gaps } = await look()
      assert.deepEqual(all, range(1, 40))
      assert.deepEqual(gaps, [{ from: null, to: null, reason: 'epoch_changed', reset: true, at: 20 }])
    })
  })
}
