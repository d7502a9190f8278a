// Subscribing, publishing, history, losses; and going on exactly after whatever happened.
import assert from 'node:assert/strict'
import test from 'node:test'
import { client, durable, isOpen, proxy, range, relay, until } from './support.mjs'

test('what is published is delivered, in history, and in order', async t => {
  const node = await relay(t)
  const relayed = client(t, node.url(), { user: 'ada' })
  const events = []
  const subscription = relayed.subscribe('home/lamp', event => events.push(event))
  await subscription.ready

  const receipt = await relayed.publish('home/lamp', { on: true }, { name: 'switched' })
  await relayed.publish('home/lamp', null)
  await until('two events', () => events.length === 2)
  const history = await relayed.history('home/lamp', { from: 'start', limit: 1 })

  assert.equal(receipt.seq, 1)
  assert.deepEqual(events.map(({ seq, data, user }) => [seq, data, user]),
    [[1, { on: true }, 'ada'], [2, null, 'ada']])
  assert.equal(events[0].name, 'switched')
  assert.deepEqual(history.events.map(({ seq }) => seq), [1])
  assert.deepEqual(subscription.positions, { 'home/lamp': { epoch: receipt.epoch, seq: 2 } })
  assert.ok((await relayed.ping()).time > 1e12)
  assert.ok(relayed.age >= 0 && relayed.age < 5000)

  subscription.unsubscribe()
  await relayed.publish('home/lamp', 3)
  await relayed.ping()
  assert.equal(events.length, 2)
  assert.deepEqual(relayed.errors, [])
})

test('every form of `from` begins where it says', async t => {
  const node = await relay(t)
  const relayed = client(t, node.url())
  let receipt
  for (const data of range(1, 10)) receipt = await relayed.publish('log', data)
  const { events: [, , third] } = await relayed.history('log', { from: 'start' })
  const position = { epoch: receipt.epoch, seq: 8 }

  const starts = [
    ['live', 11], ['start', 1], [{ last: 3 }, 8], [{ since: third.time }, undefined], [position, 9],
  ]
  const seen = []
  for (const [from] of starts) {
    const fresh = client(t, node.url())
    const events = []
    seen.push(events)
    await fresh.subscribe('log', event => events.push(event), { from }).ready
  }
  await relayed.publish('log', 11)
  await until('event 11 everywhere', () => seen.every(events => events.at(-1)?.data === 11))

  for (const [at, [from, first]] of starts.entries()) {
    const expected = first ?? seen[at].find(({ time }) => time >= third.time).seq
    const found = seen[at].map(({ seq }) => seq)
    assert.deepEqual(found, range(expected, 11), JSON.stringify(from))
  }
})

test('subscriptions that overlap get their own events, each once', async t => {
  const node = await relay(t)
  const relayed = client(t, node.url())
  for (const data of range(1, 6)) await relayed.publish('home/lamp', data)
  const got = { live: [], all: [], last: [], pattern: [], other: [] }
  const into = name => ({ topic, seq }) => topic === 'home/lamp' && got[name].push(seq)

  await relayed.subscribe('home/lamp', into('live')).ready
  await relayed.subscribe('home/lamp', into('all'), { from: 'start' }).ready
  await relayed.subscribe('home/+', into('pattern'), { from: 'start' }).ready
  await relayed.subscribe('home/#', into('other')).ready
  const last = relayed.subscribe('home/lamp', into('last'), { from: { last: 2 } })
  await last.ready
  for (const data of range(7, 9)) await relayed.publish('home/lamp', data)
  await until('event 9 everywhere', () => Object.values(got).every(seqs => seqs.at(-1) === 9))

  assert.deepEqual(got, {
    live: range(7, 9), all: range(1, 9), last: range(5, 9), pattern: range(1, 9),
    other: range(7, 9),
  })
  last.unsubscribe()
  await relayed.publish('home/lamp', 10)
  await until('event 10', () => got.all.at(-1) === 10 && got.pattern.at(-1) === 10)
  assert.equal(got.last.at(-1), 9)
  assert.deepEqual(relayed.errors, [])
})

test('a loss is told with its range and reason', async t => {
  const node = await relay(t, '--max-events', '3')
  const relayed = client(t, node.url())
  const gaps = []
  relayed.on('gap', gap => gaps.push(gap))
  let receipt
  for (const data of range(1, 10)) receipt = await relayed.publish('log', data)
  const events = []
  const take = event => events.push(event.seq)

  const from = { epoch: receipt.epoch, seq: 2 }
  const subscription = relayed.subscribe('log', take, { from })
  await until('the events', () => events.length === 3)

  assert.deepEqual(events, [8, 9, 10])
  assert.equal(gaps.length, 1)
  const { topic, from: first, to, reason, reset } = gaps[0]
  assert.deepEqual([topic, first, to, reason, reset], ['log', 3, 7, 'truncated', false])
  assert.equal(gaps[0].subscription, subscription)

  // A relay that only has memory forgets it all.
  await node.end('SIGKILL')
  await node.start()
  await until('the notice', () => gaps.length === 2)
  assert.deepEqual([gaps[1].reason, gaps[1].reset, gaps[1].from], ['epoch_changed', true, null])
  await relayed.publish('log', 'new')
  await until('the new event', () => events.at(-1) === 1)
})

test('a relay that is killed and started again loses nothing', async t => {
  const node = await relay(t, ...durable(t))
  const [reader, writer] = [client(t, node.url()), client(t, node.url())]
  const [one, all] = [[], new Map()]
  await reader.subscribe('log/0', ({ data }) => one.push(data)).ready
  const byTopic = ({ topic, data }) => all.set(topic, [...(all.get(topic) ?? []), data])
  await reader.subscribe('log/+', byTopic).ready

  const sent = []
  for (const number of range(1, 200)) {
    sent.push(writer.publish(`log/${number % 4}`, number))
    if (number % 50 === 0) {
      await node.end(number === 100 ? 'SIGTERM' : 'SIGKILL')
      await node.start()
    }
  }
  await Promise.all(sent)
  const count = () => [...all.values()].flat().length
  await until('all events', () => count() >= 200 && one.length >= 50)
  // What came twice would come before these.
  await Promise.all(range(201, 204).map(number => writer.publish(`log/${number % 4}`, number)))
  await until('the last ones', () => {
    return one.at(-1) === 204 && range(0, 3).every(rest => all.get(`log/${rest}`).at(-1) > 200)
  })

  const expected = rest => range(1, 204).filter(number => number % 4 === rest)
  assert.deepEqual(one, expected(0))
  for (const rest of range(0, 3)) assert.deepEqual(all.get(`log/${rest}`), expected(rest))
})

test('what is published while there is no connection is sent once there is one', async t => {
  const node = await relay(t)
  const between = await proxy(t, () => node.port)
  const [reader, writer] = [client(t, node.url()), client(t, between.url, { maxQueued: 40 })]
  const got = []
  await reader.subscribe('log', ({ data }) => got.push(data)).ready
  await isOpen(writer)

  // Nothing of this is answered, though the relay may have it.
  const sent = range(1, 20).map(data => writer.publish('log', data))
  between.cut()
  between.refuses = true
  await until('the loss to be noticed', () => writer.state === 'waiting')
  for (const data of range(21, 40)) sent.push(writer.publish('log', data))
  await assert.rejects(writer.publish('log', 41), { code: 'queue_full' })
  await assert.rejects(writer.publish('log', 'x'.repeat(300_000)), { code: 'too_large' })
  between.refuses = false
  await Promise.all(sent)
  await until('all events', () => got.length >= 40)
  await reader.ping()

  assert.deepEqual(got, range(1, 40))
  assert.equal(writer.queued, 0)
})

test('a position in a store outlives the page', async t => {
  const node = await relay(t)
  const kept = new Map()
  const store = {
    getItem: key => kept.get(key) ?? null, setItem: (key, value) => kept.set(key, value),
  }
  const writer = client(t, node.url())
  const got = []
  const take = ({ data }) => got.push(data)
  for (const page of [0, 1, 2]) {
    const relayed = client(t, node.url(), { store })
    await relayed.subscribe('log/one', take).ready
    await relayed.subscribe('log/+', () => {}).ready
    await relayed.subscribe('other/+', take).ready
    await writer.publish('log/one', page * 2)
    await writer.publish('other/two', `o${page * 2}`)
    await until('the events', () => got.includes(page * 2) && got.includes(`o${page * 2}`))
    assert.throws(() => relayed.subscribe('log/one', take), { code: 'bad_request' })
    relayed.close()
    await writer.publish('log/one', page * 2 + 1)
    await writer.publish('other/two', `o${page * 2 + 1}`)
  }

  assert.deepEqual(got.filter(data => data >= 0), range(0, 4))
  assert.deepEqual(got.filter(data => !(data >= 0)), range(0, 4).map(number => `o${number}`))
})

test('what is acknowledged does not come again, and the rest does', async t => {
  const node = await relay(t, '--ack-timeout', '200ms', '--max-deliveries', '3')
  const between = await proxy(t, () => node.port)
  const relayed = client(t, between.url)
  for (const data of range(1, 5)) await relayed.publish('jobs', data)
  const got = []
  const jobs = relayed.subscribe('jobs', event => {
    got.push([event.seq, Boolean(event.redelivered)])
    if (event.seq !== 3) jobs.ack(event)
  }, { from: 'start', consumer: 'billing', window: 2 })
  assert.throws(() => relayed.subscribe('jobs', () => {}), { code: 'bad_request' })
  await until('event 5', () => got.some(([seq]) => seq === 5))
  between.cut()
  await isOpen(relayed)
  await relayed.publish('jobs', 6)
  await until('event 6', () => got.some(([seq]) => seq === 6))

  // An `ack` is cumulative: 4 says that 3 was dealt with too.
  assert.deepEqual(got.filter(([, again]) => !again).map(([seq]) => seq), range(1, 6))
  // The relay has read its acknowledgements before somebody takes over.
  await relayed.ping()
  const next = client(t, node.url())
  const rest = []
  await next.subscribe('jobs', event => rest.push(event.seq), { consumer: 'billing' }).ready
  await next.publish('jobs', 7)
  await until('event 7', () => rest.includes(7))
  assert.deepEqual(rest, [7])
  await until('the first one to be replaced', () => relayed.state === 'closed')
  assert.equal(relayed.errors.at(-1).closeCode, 4002)
})

test('what is acknowledged without a connection is said on the next one', async t => {
  const node = await relay(t)
  const between = await proxy(t, () => node.port)
  const [relayed, writer] = [client(t, between.url), client(t, node.url())]
  for (const topic of ['a', 'b']) for (const data of range(1, 4)) await writer.publish(topic, data)
  const got = { a: [], b: [] }
  const take = event => got[event.topic].push(event)
  const options = { from: 'start', window: 4 }
  const a = relayed.subscribe('a', take, { ...options, consumer: 'one' })
  const b = relayed.subscribe('b', take, { ...options, ack: true })
  await until('the events', () => got.a.length + got.b.length === 8)
  a.ack(got.a[0])
  await relayed.ping()
  between.refuses = true
  between.cut()
  await until('the loss to be noticed', () => relayed.state === 'waiting')
  a.ack(got.a[2])
  b.ack(got.b[1])
  between.refuses = false
  for (const topic of ['a', 'b']) await writer.publish(topic, 5)
  await until('event 5', () => got.a.at(-1).seq === 5 && got.b.at(-1).seq === 5)

  assert.deepEqual(got.a.slice(4).map(({ seq, redelivered }) => [seq, redelivered ?? false]),
    [[4, true], [5, false]])
  assert.deepEqual(got.b.slice(4).map(({ seq }) => seq), [3, 4, 5])
  assert.equal(between.accepted, 2)
  assert.deepEqual(relayed.errors, [])
  const { consumers: [consumer] } = await (await fetch(`${node.url()}/v1/consumers`)).json()
  assert.equal(consumer.seq, 3)
})

test('nobody acknowledges: it comes again, then it is put aside', async t => {
  const node = await relay(t, '--ack-timeout', '100ms', '--max-deliveries', '2')
  const relayed = client(t, node.url())
  for (const data of range(1, 3)) await relayed.publish('jobs', data)
  const [got, gaps] = [[], []]
  relayed.on('gap', gap => gaps.push(gap))
  const jobs = relayed.subscribe('jobs', event => {
    got.push(event.seq)
    if (event.seq === 1 || gaps.length) jobs.ack(event)
  }, { from: 'start', ack: true, window: 10 })
  await until('the dead letter and the rest', () => gaps.length === 1 && got.at(-1) === 3)

  assert.deepEqual([gaps[0].from, gaps[0].to, gaps[0].reason], [2, 2, 'dead_letter'])
  const again = got.filter(seq => seq === 2).length
  assert.equal(again, 2, got.join(' '))
  const dead = await relayed.history('$dead/jobs')
  assert.equal(dead.events[0].data.seq, 2)
})

test('a refusal ends one subscription, and a failing handler nothing at all', async t => {
  const node = await relay(t)
  const relayed = client(t, node.url())
  const got = []
  relayed.subscribe('log', () => {
    throw new Error('mine')
  })
  relayed.subscribe('log', async () => {
    throw new Error('later')
  })
  await relayed.subscribe('log', ({ data }) => got.push(data)).ready
  const bad = relayed.subscribe('log//x', () => {})

  await assert.rejects(bad.ready, { code: 'bad_request', field: 'topic' })
  await relayed.publish('log', 1)
  await until('the event', () => got.length === 1 && relayed.errors.length === 3)
  const said = relayed.errors.map(({ message }) => message)
  assert.ok(said.includes('mine') && said.includes('later'), said.join('; '))
  await assert.rejects(relayed.publish('$sys/x', 1), { code: 'forbidden' })
})
