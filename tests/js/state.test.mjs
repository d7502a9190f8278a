// The shared state, watches that go on exactly, and presence.
import assert from 'node:assert/strict'
import test from 'node:test'
import { client, durable, isOpen, proxy, range, relay, scripted, until } from './support.mjs'

/** What a handler of a watch saw, in short. */
const log = into => change => {
  if (change.type !== 'state') into.push(change.type)
  else into.push(`${change.key}=${change.deleted ? 'gone' : change.value}`)
}

test('values are set, read, compared and deleted', async t => {
  const node = await relay(t)
  const relayed = client(t, node.url(), { user: 'ada' })

  const first = await relayed.set('home/lamp', 1)
  const conflict = { code: 'conflict', version: 1 }
  await assert.rejects(relayed.set('home/lamp', 2, { ifVersion: 0 }), conflict)
  const second = await relayed.set('home/lamp', 2, { ifVersion: first.version })
  await relayed.set('home/door', 'open', { ttl: 60_000 })
  for (const number of range(1, 5)) await relayed.set(`many/${number}`, number)

  const lamp = await relayed.get('home/lamp')
  assert.deepEqual([lamp.value, lamp.version, lamp.user], [2, second.version, 'ada'])
  assert.equal(await relayed.get('home/cat'), null)
  const { values } = await relayed.values('home/+')
  assert.deepEqual(values.map(({ key }) => key).sort(), ['home/door', 'home/lamp'])
  assert.ok(values.find(({ key }) => key === 'home/door').expires > 0)
  const page = await relayed.values('many/+', { limit: 2 })
  assert.deepEqual([page.values.length, page.next !== undefined], [2, true])
  const rest = await relayed.values('many/+', { after: page.next })
  assert.equal(rest.values.length, 3)
  assert.ok((await relayed.delete('home/lamp')).version > second.version)
  assert.equal(await relayed.delete('home/lamp'), null)
  await assert.rejects(relayed.delete('home/door', { ifVersion: 1 }), { code: 'conflict' })
})

test('a watch gets what there is, then every change, and goes on where it was', async t => {
  const node = await relay(t)
  const between = await proxy(t, () => node.port)
  const [writer, watcher] = [client(t, node.url()), client(t, between.url)]
  await writer.set('home/lamp', 1)
  await writer.set('home/door', 'open')
  const [all, lamps] = [[], []]
  const watch = watcher.watch('home/#', log(all))
  watcher.watch('+/lamp', log(lamps))
  await until('both to be complete', () => all.includes('synced') && lamps.includes('synced'))
  await writer.set('home/lamp', 2)
  await until('the change', () => all.includes('home/lamp=2') && lamps.includes('home/lamp=2'))
  assert.deepEqual(lamps, ['reset', 'home/lamp=1', 'synced', 'home/lamp=2'])
  assert.deepEqual(all, ['reset', 'home/lamp=1', 'home/door=open', 'synced', 'home/lamp=2'])

  for (const list of [all, lamps]) list.length = 0
  between.refuses = true
  between.cut()
  await until('the loss to be noticed', () => watcher.state === 'waiting')
  await writer.delete('home/door')
  await writer.set('home/lamp', 3)
  await writer.set('home/lamp', 4)
  between.refuses = false
  await until('both to be complete', () => all.includes('synced') && lamps.includes('synced'))
  await writer.set('home/lamp', 5)
  await until('the change', () => all.includes('home/lamp=5') && lamps.includes('home/lamp=5'))

  assert.deepEqual(all, ['home/door=gone', 'home/lamp=4', 'synced', 'home/lamp=5'])
  assert.deepEqual(lamps, ['home/lamp=4', 'synced', 'home/lamp=5'])
  assert.deepEqual([...watch.values.keys()], ['home/lamp'])
  assert.equal(watch.values.get('home/lamp').value, 5)
  watch.unwatch()
  await writer.set('home/lamp', 6)
  await until('the change', () => lamps.includes('home/lamp=6'))
  assert.equal(all.at(-1), 'home/lamp=5')
})

test('a relay that forgot begins anew, one that keeps its state goes on', async t => {
  for (const [flags, expected] of [
    [[], ['reset', 'synced', 'a=2']], [durable(t), ['synced', 'a=2']],
  ]) {
    const node = await relay(t, ...flags)
    const relayed = client(t, node.url())
    await relayed.set('a', 1)
    const seen = []
    const watch = relayed.watch('#', log(seen))
    await until('the watch', () => seen.includes('synced'))
    seen.length = 0
    await node.end('SIGKILL')
    await node.start()
    await until('the watch', () => seen.includes('synced'))
    await relayed.set('a', 2)
    await until('the change', () => seen.includes('a=2'))
    assert.deepEqual(seen, expected)
    assert.equal(watch.values.size, 1)
  }
})

test('a second watch of a pattern has it begin anew for both', async t => {
  const node = await relay(t)
  const relayed = client(t, node.url())
  await relayed.set('a', 1)
  const [one, two] = [[], []]
  relayed.watch('a', log(one))
  await until('the first', () => one.includes('synced'))
  relayed.watch('a', log(two))
  await until('the second', () => two.includes('synced'))
  await relayed.set('a', 2)
  await until('the change', () => one.includes('a=2') && two.includes('a=2'))

  assert.deepEqual(two, ['reset', 'a=1', 'synced', 'a=2'])
  assert.deepEqual(one, ['reset', 'a=1', 'synced', ...two])
})

test('from the first `watching` of the relay itself all watches count as not synced', async t => {
  const epoch = '0123456789abcdef'
  const asked = []
  const its = await scripted(t, ({ message, say, socket, number }) => {
    const { type, id, pattern, from } = message
    if (type !== 'watch') return
    if (number > 1) {
      asked.push([pattern, from])
      return
    }
    say({ type: 'watching', id, pattern, epoch, version: 5, reset: true })
    say({ type: 'state', key: pattern.replace('+', 'x'), value: 1, version: 5, time: 1 })
    say({ type: 'synced', pattern, version: 5 })
    if (pattern !== '$sys/+') return
    // Those of clients begin anew; the first of them is cut off in the midst of it.
    say({ type: 'watching', pattern: 'a/+', epoch, version: 9, reset: true })
    say({ type: 'state', key: 'a/x', value: 2, version: 9, time: 1 })
    socket.terminate()
  })
  const relayed = client(t, its.url)
  const seen = []
  for (const pattern of ['a/+', 'b/+', '$sys/+']) relayed.watch(pattern, log(seen))
  await until('the watches on the next connection', () => asked.length === 3)

  assert.deepEqual(Object.fromEntries(asked), {
    'a/+': undefined, 'b/+': undefined, '$sys/+': { epoch, version: 5 },
  })
})

test('what comes within a stretch does not move the position', async t => {
  const epoch = '0123456789abcdef'
  const asked = []
  const its = await scripted(t, ({ message, say, socket, number }) => {
    const { type, id, pattern, from } = message
    if (type !== 'watch') return
    if (number === 2) return asked.push([pattern, from])
    const version = pattern === 'a' ? 3 : 8
    say({ type: 'watching', id, pattern, epoch, version, reset: true })
    if (pattern === 'a') return say({ type: 'synced', pattern, version })
    say({ type: 'state', key: 'b', value: 1, version: 8, time: 1 })
    socket.terminate()
  })
  const relayed = client(t, its.url)
  relayed.watch('a', () => {})
  relayed.watch('b', () => {})
  await until('the watches on the next connection', () => asked.length === 2)

  assert.deepEqual(asked, [['a', { epoch, version: 3 }], ['b', undefined]])
})

test('who is present is so again after a new connection', async t => {
  const node = await relay(t)
  const between = await proxy(t, () => node.port)
  const [ada, bob] = [client(t, between.url, { user: 'ada' }), client(t, node.url())]
  const seen = []
  const watch = bob.watch('$presence/room/+', change => seen.push(change))
  await ada.join('room', { status: 'here' })
  await until('ada to be seen', () => watch.values.has('$presence/room/ada'))
  between.cut()
  await until('the next connection', () => between.accepted === 2)
  await isOpen(ada)
  await ada.ping()
  const value = () => watch.values.get('$presence/room/ada').value
  await until('the earlier connection to be gone', () => value().connections === 1)
  await bob.ping()

  // Within a few seconds nobody sees it, and nothing was told.
  assert.deepEqual(seen.filter(({ deleted }) => deleted), [])
  assert.deepEqual([value().connections, value().info], [1, { status: 'here' }])

  await node.end('SIGKILL')
  const keys = () => seen.filter(({ key }) => key).length
  const before = keys()
  await node.start()
  await until('ada to be seen by the next relay', () => keys() > before)
  await ada.leave('room')
  await until('ada to be gone', () => seen.at(-1).deleted)
  await assert.rejects(bob.join('room'), { code: 'bad_request' })
  assert.deepEqual(ada.errors, [])
})
