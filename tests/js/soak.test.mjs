// Connections lost at random moments while events flow: all arrive once, nothing piles up.
import assert from 'node:assert/strict'
import test from 'node:test'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { client, durable, pace, proxy, range, relay, until } from './support.mjs'

setFlagsFromString('--expose-gc')
const gc = runInNewContext('gc')
const LOSSES = Number(process.env.LANDLINE_JS_LOSSES ?? 200)
const TOPICS = 4

const heap = async () => {
  for (const _ of range(1, 4)) {
    gc()
    await new Promise(setImmediate)
  }
  return process.memoryUsage().heapUsed
}

const handles = kind => process.getActiveResourcesInfo().filter(name => name === kind).length

test(`${LOSSES} lost connections`, { timeout: 80_000 }, async t => {
  const node = await relay(t, ...durable(t), '--sync', 'interval')
  const between = await proxy(t, () => node.port)
  const options = { backoffMin: 2, backoffMax: 10, maxQueued: 5000 }
  const before = { heap: await heap(), timers: handles('Timeout') }
  const [reader, writer] = [client(t, between.url, options), client(t, between.url, options)]
  const [last, faults] = [{ name: new Map(), pattern: new Map() }, []]
  const take = into => ({ topic, data }) => {
    const expected = (last[into].get(topic) ?? 0) + 1
    if (data !== expected) faults.push(`${into} ${topic}: ${data} in place of ${expected}`)
    last[into].set(topic, data)
  }
  reader.on('gap', gap => faults.push(`gap ${gap.topic} ${gap.from} ${gap.to} ${gap.reason}`))
  for (const topic of range(1, 2)) await reader.subscribe(`log/${topic}`, take('name')).ready
  await reader.subscribe('log/#', take('pattern')).ready
  const versions = []
  const keep = ({ type, version }) => type === 'state' && versions.push(version)
  const watch = reader.watch('at/#', keep)

  let [count, isOver] = [0, false]
  const failures = []
  const publishing = (async () => {
    while (!isOver) {
      count++
      for (const topic of range(1, TOPICS)) {
        writer.publish(`log/${topic}`, count).catch(error => failures.push(error))
      }
      writer.set(`at/${count % 10}`, count).catch(error => failures.push(error))
      await pace()
      if (writer.queued > 3000) await until('room', () => writer.queued < 1000)
    }
  })()
  const rounds = []
  for (const loss of range(1, LOSSES)) {
    const moment = count + Math.random() * 50
    await until('the moment of a loss', () => count > moment)
    between.cut()
    if (loss % 50 === 0) {
      await node.end('SIGKILL')
      await node.start()
    }
    if (loss === Math.ceil(LOSSES / 4)) rounds.push(await heap())
  }
  isOver = true
  await publishing
  await until('all answers', () => writer.queued === 0)
  const isComplete = (map, topics) => range(1, topics).every(n => map.get(`log/${n}`) === count)
  await until('all events', () => isComplete(last.name, 2) && isComplete(last.pattern, TOPICS))
  await until('all values', () => {
    return range(0, 9).every(n => watch.values.get(`at/${n}`)?.value === count - (count - n) % 10)
  })
  rounds.push(await heap())

  assert.deepEqual(failures, [])
  assert.deepEqual(faults.slice(0, 5), [])
  assert.deepEqual(versions, [...new Set(versions)].sort((a, b) => a - b))
  assert.ok(between.accepted > LOSSES)
  reader.close()
  writer.close()
  between.close()
  last.name.clear()
  versions.length = 0
  await until('all timers to be gone', () => handles('Timeout') <= before.timers + 1)
  await until('all sockets to be gone', () => handles('TCPSocketWrap') === 0)
  rounds.push(await heap())
  const mib = number => (number / 2 ** 20).toFixed(1)
  console.log(`${between.accepted} connections, ${count * TOPICS} events; heap at the beginning, `
    + `after a quarter, at the end, after close: ${[before.heap, ...rounds].map(mib)} MiB`)
  assert.ok(rounds[2] - before.heap < 6 << 20, 'the heap has grown')
  assert.equal(writer.queued, 0)
})

test('subscriptions come and go while connections are lost', { timeout: 80_000 }, async t => {
  const node = await relay(t)
  const between = await proxy(t, () => node.port)
  const reader = client(t, between.url, { backoffMin: 2, backoffMax: 10 })
  const writer = client(t, node.url())
  const pick = list => list[Math.floor(Math.random() * list.length)]
  const filters = ['a/1', 'a/2', 'b/1', 'a/+', '+/1', '#']
  const faults = []
  const [subs, tails] = [new Set(), new Map()]
  const subscribe = () => {
    const [filter, from] = [pick(filters), pick(['live', 'start', { last: 3 }])]
    const sub = { filter, from, last: new Map() }
    const name = `${filter} from ${JSON.stringify(from)}`
    sub.handle = reader.subscribe(filter, ({ topic, seq }) => {
      const before = sub.last.get(topic)
      const isFirst = before === undefined
      if (isFirst && from === 'start' && seq !== 1) faults.push(`${name}: ${seq} first`)
      if (!isFirst && seq !== before + 1) faults.push(`${name}: ${seq} after ${before}`)
      sub.last.set(topic, seq)
    }, { from })
    subs.add(sub)
  }
  reader.on('gap', gap => faults.push(`gap ${gap.topic} ${gap.from} ${gap.to} ${gap.reason}`))

  for (const round of range(1, 600)) {
    if (subs.size < 8) subscribe()
    else if (Math.random() < 0.3) {
      const sub = pick([...subs])
      sub.handle.unsubscribe()
      subs.delete(sub)
    }
    const topic = pick(['a/1', 'a/2', 'b/1'])
    tails.set(topic, (await writer.publish(topic, round)).seq)
    if (round % 10 === 0) between.cut()
  }
  await Promise.all([...subs].map(({ handle }) => handle.ready))
  for (const topic of tails.keys()) tails.set(topic, (await writer.publish(topic, 0)).seq)
  const names = filter => [...tails.keys()].filter(topic => {
    return filter === topic || filter === '#' || (filter === 'a/+' && topic.startsWith('a'))
      || (filter === '+/1' && topic.endsWith('1'))
  })
  const state = () => [...subs].map(({ filter, from, last }) => ({ filter, from, last }))
  await until('all events', () => [...subs].every(({ filter, last }) => {
    return names(filter).every(topic => last.get(topic) === tails.get(topic))
  })).catch(error => assert.fail(`${error.message}\n${JSON.stringify(state())}`))

  assert.deepEqual(faults, [])
  assert.deepEqual(reader.errors, [])
})
