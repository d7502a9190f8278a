// Coming back, staying away, noticing a dead connection, and leaving nothing behind.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { gzipSync } from 'node:zlib'
import { LandlineError, connect } from '../../src/web/landline.js'
import {
  WebSocket, client, isOpen, proxy, range, relay, root, scripted, until,
} from './support.mjs'

test('the module is small', () => {
  const text = readFileSync(path.join(root, 'src/web/landline.js'), 'utf8')
  const bare = text.replace(/\/\*\*[^]*?\*\//g, '').replace(/^\s*\/\/.*\n/gm, '')
  const code = bare.replace(/\n+/g, '\n')
  const size = gzipSync(code, { level: 9 }).length
  console.log(`landline.js: ${code.length} bytes without comments, ${size} of them gzipped`)
  assert.ok(size <= 10_240, `${size} bytes`)
})

test('every option and every method is documented', () => {
  const read = file => readFileSync(path.join(root, file), 'utf8')
  const [code, page] = [read('src/web/landline.js'), read('docs/javascript.md')]
  const defaults = code.match(/const DEFAULTS = {([^]*?)\n}/)[1]
  for (const [, name, text] of defaults.matchAll(/^  (\w+): (.*),$/gm)) {
    const value = text === '1 << 20' ? 1 << 20 : Number(text.replaceAll('_', ''))
    assert.ok(page.includes(`| \`${name}\` | ${value} |`), `${name} ${value}`)
  }
  const relay = code.match(/^class Relay {([^]*?)^}/m)[1].split('// ---- the connection')[0]
  const methods = [...relay.matchAll(/^  (?:async |get )?(\w+)\(.*{$/gm)].map(([, name]) => name)
  assert.ok(methods.length > 15)
  for (const name of methods.filter(name => name !== 'constructor')) {
    assert.match(page, new RegExp('`(relay\\.)?' + name + '\\b'), name)
  }
})

test('the relay serves the module as it is', async t => {
  const node = await relay(t)
  const answer = await fetch(`${node.url()}/landline.js`)
  assert.equal(answer.headers.get('content-type'), 'text/javascript; charset=utf-8')
  assert.match(await answer.text(), /export function connect/)
})

test('close codes are obeyed', async t => {
  for (const [code, comesBack, within] of [
    [4002, false], [4050, false], [1002, false], [1003, false], [1009, false],
    [4101, true, 2000], [4103, true, 2000], [4150, true, 2000], [1001, true, 2000], [1011, true, 2000],
    [4200, true, 100], [4250, true, 100],
  ]) {
    const its = await scripted(t, ({ message, socket, number }) => {
      if (message.type === 'hello' && number === 1) socket.close(code, 'why')
    })
    const relayed = client(t, its.url, { backoffMin: 150, backoffMax: 300 })
    const changes = []
    relayed.on('state', change => changes.push(change))
    await until(`${code} to be heard`, () => changes.some(change => change.code === code))
    if (comesBack) {
      await until(`${code} to come back`, () => its.connections === 2, within)
    } else {
      assert.equal(relayed.state, 'closed', `${code}`)
      assert.equal(relayed.errors[0].closeCode, code)
      await assert.rejects(relayed.publish('a', 1), { code: 'closed' })
      assert.throws(() => relayed.subscribe('a', () => {}), LandlineError)
      assert.equal(its.connections, 1)
    }
    relayed.close()
  }
})

test('a client that the operator disconnects comes back and misses nothing', async t => {
  const node = await relay(t)
  const relayed = client(t, node.url())
  const [seen, changes] = [[], []]
  relayed.on('state', change => changes.push(change))
  const subscription = relayed.subscribe('a', event => seen.push(event.data))
  await until('the subscription', () => subscription.positions.a)
  const ask = (method, path) => fetch(`${node.url()}/v1/connections${path}`, { method })
  const { connections } = await (await ask('GET', '')).json()
  const own = connections.find(one => one.transport === 'websocket')
  assert.equal((await ask('DELETE', `/${own.connection}`)).status, 204)
  for (const n of range(1, 5)) {
    await fetch(`${node.url()}/v1/topics/a/events`, { method: 'POST', body: `${n}` })
  }
  await until('all events', () => seen.length >= 5)

  assert.deepEqual(seen, range(1, 5))
  assert.ok(changes.some(({ state, code }) => state === 'waiting' && code === 4103))
})

test('the pause that the relay asks for is kept', async t => {
  const its = await scripted(t, ({ message, say, socket, number }) => {
    if (message.type !== 'hello' || number > 1) return
    say({ type: 'bye', reason: 'shutdown', reconnect_after_ms: 250 })
    socket.close(1001)
  })
  const relayed = client(t, its.url, { backoffMin: 1, backoffMax: 1 })
  const byes = []
  relayed.on('bye', bye => byes.push(bye.reason))
  await until('the second connection', () => its.connections === 2)

  assert.deepEqual(byes, ['shutdown'])
  assert.ok(its.at[1] - its.at[0] >= 249, `${its.at[1] - its.at[0]} ms`)
})

test('a relay that is not there is tried for ever, less and less often', async t => {
  const between = await proxy(t, () => 1)
  between.refuses = true
  const relayed = client(t, between.url, { backoffMin: 2, backoffMax: 16 })
  const waits = []
  relayed.on('state', ({ state, retryIn }) => state === 'waiting' && waits.push(retryIn))
  await until('many attempts', () => waits.length > 40)

  assert.ok(waits.every((wait, attempt) => wait <= Math.min(16, 2 * 2 ** attempt)))
  assert.ok(waits.some(wait => wait > 4) && relayed.age === null)
})

test('the network is back, or the page is seen again: it tries at once', async t => {
  const target = new EventTarget()
  const document = Object.assign(new EventTarget(), { visibilityState: 'visible' })
  globalThis.addEventListener = target.addEventListener.bind(target)
  globalThis.removeEventListener = target.removeEventListener.bind(target)
  globalThis.document = document
  t.after(() => {
    for (const name of ['addEventListener', 'removeEventListener', 'document']) {
      delete globalThis[name]
    }
  })
  const node = await relay(t)
  const between = await proxy(t, () => node.port)
  const relayed = client(t, between.url, { backoffMin: 1e6, backoffMax: 1e6 })
  await isOpen(relayed)
  const occasions = [() => target.dispatchEvent(new Event('online')),
    () => document.dispatchEvent(new Event('visibilitychange'))]
  for (const occasion of occasions) {
    between.cut()
    await until('the loss to be noticed', () => relayed.state === 'waiting')
    occasion()
    await isOpen(relayed)
  }
  // While there is a connection, they are a reason to look whether it lives.
  const { age } = relayed
  await until('some silence', () => relayed.age > 30)
  occasions[0]()
  await until('the answer to a ping', () => relayed.age < 25)
  relayed.close()
  between.refuses = true
  occasions.forEach(occasion => occasion())
  assert.equal(relayed.state, 'closed')
  assert.ok(age >= 0)
})

test('a connection that has gone silent is noticed and replaced', async t => {
  const node = await relay(t)
  const between = await proxy(t, () => node.port)
  const relayed = client(t, between.url, {
    pingAfter: 100, pongWithin: 150, connectWithin: 500,
  })
  const changes = []
  relayed.on('state', ({ state, reason }) => changes.push(state + (reason ? `: ${reason}` : '')))
  await isOpen(relayed)
  // Pings keep a connection that lives.
  const before = between.sent
  await until('five pings', () => between.sent >= before + 5)
  assert.deepEqual(changes, ['open'])

  between.stalls = true
  const from = performance.now()
  await until('the loss to be noticed', () => relayed.state !== 'open')
  const took = performance.now() - from
  assert.ok(took < 1000, `${took} ms`)
  assert.equal(changes[1], 'waiting: the relay was silent for too long')
  between.stalls = false
  await isOpen(relayed)
})

test('a connection that never opens is given up', async t => {
  const node = await relay(t)
  const between = await proxy(t, () => node.port)
  between.stalls = true
  const relayed = client(t, between.url, { connectWithin: 100 })
  await until('the second attempt', () => between.accepted > 1)
  between.stalls = false
  await isOpen(relayed)
})

test('what must not be done twice is not: its caller is told that nobody knows', async t => {
  const heard = []
  const its = await scripted(t, ({ message, socket, say, number }) => {
    if (message.type === 'hello') return
    heard.push([message.type, message.key, number])
    if (number === 1 && heard.length === 3) socket.terminate()
    if (number === 2) say({ type: 'stored', id: message.id, version: 1, epoch: 'e' })
  })
  const relayed = client(t, its.url)
  const once = relayed.set('a', 1, { ifVersion: 0 })
  const again = relayed.set('b', 1)
  const published = relayed.publish('c', 1, { key: 'k' })
  await assert.rejects(once, { code: 'unknown' })
  await again
  await published

  assert.deepEqual(heard, [
    ['set', 'a', 1], ['set', 'b', 1], ['publish', 'k', 1], ['set', 'b', 2], ['publish', 'k', 2],
  ])
})

test('a publish is not sent again when its key may be forgotten', async t => {
  const its = await scripted(t, ({ message, socket }) => {
    if (message.type === 'publish') socket.terminate()
  })
  const relayed = client(t, its.url, { resendWithin: 0 })
  await assert.rejects(relayed.publish('a', 1), { code: 'unknown' })
})

test('what the relay has no room for now is sent again, with the same key', async t => {
  const keys = []
  const its = await scripted(t, ({ message: { type, id, key }, say }) => {
    if (type !== 'publish') return
    keys.push(key)
    if (keys.length === 1) say({ type: 'error', id, code: 'busy', retry_after_ms: 20, message: '' })
    else say({ type: 'published', id, seq: 1, epoch: 'e', durability: 'memory' })
  })
  const relayed = client(t, its.url)
  assert.equal((await relayed.publish('a', 1)).seq, 1)
  assert.equal(keys.length, 2)
  assert.equal(keys[0], keys[1])
})

test('a user that the relay refuses ends the client', async t => {
  const node = await relay(t)
  const relayed = client(t, node.url(), { user: 'a/b' })
  const waiting = relayed.publish('a', 1)
  await assert.rejects(waiting, { code: 'bad_request', field: 'user' })
  assert.equal(relayed.state, 'closed')
})

test('it says what is missing', () => {
  assert.throws(() => connect(), /URL/)
  if (!globalThis.WebSocket) assert.throws(() => connect('http://localhost:1'), /WebSocket/)
})

test('an error that nobody listens for is not silent', async t => {
  const said = []
  t.mock.method(console, 'warn', (...words) => said.push(words))
  const node = await relay(t)
  const relayed = connect(node.url(), { WebSocket })
  t.after(() => relayed.close())
  await assert.rejects(relayed.subscribe('a//b', () => {}).ready)
  assert.equal(said.length, 1)
})

test('what was on its way when the connection died is not taken for a sign of life', async t => {
  const answered = []
  const its = await scripted(t, ({ message, say, number }) => {
    if (message.type !== 'ping') return
    // The first connection carries one late message after the question, and never the answer.
    if (number === 1) return say({ type: 'event', topic: 'a', seq: 1, data: 1 })
    say({ type: 'pong', id: message.id })
    answered.push(number)
  })
  const quick = { pingAfter: 50, pongWithin: 100, backoffMin: 1, backoffMax: 1 }
  const relayed = client(t, its.url, quick)
  const reasons = []
  relayed.on('state', ({ state, reason }) => state === 'waiting' && reasons.push(reason))
  await until('answers on the second connection', () => answered.length > 5)

  assert.deepEqual(reasons, ['the relay was silent for too long'])
  assert.equal(its.connections, 2)
})
