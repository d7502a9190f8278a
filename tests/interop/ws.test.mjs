// The WebSocket of `ws` against the relay, live and after it was away, whatever it offers to
// compress.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import test from 'node:test'
import { WebSocket, range, relay, until } from '../js/support.mjs'

const EVENTS = 500
const expected = (from, to) => range(from, to).map(n => [n, n])
const found = events => events.map(({ seq, data }) => [seq, data.n])
const deflates = [true, false, { threshold: 0, serverMaxWindowBits: 10 }]

async function open(node, perMessageDeflate) {
  const socket = new WebSocket(`${node.url()}/ws`.replace('http', 'ws'), 'landline.v1', {
    perMessageDeflate,
  })
  const got = []
  socket.on('message', (data, isBinary) => {
    assert.ok(!isBinary)
    got.push(JSON.parse(data))
  })
  await once(socket, 'open')
  assert.equal(socket.protocol, 'landline.v1')
  assert.equal(socket.extensions, '')
  const say = message => socket.send(JSON.stringify(message))
  const events = count => until(`${count} events`, () => {
    const events = got.filter(({ type }) => type === 'event')
    return events.length >= count && events
  })
  return { socket, got, say, events }
}

for (const offer of deflates) {
  test(`everything arrives with an offer of ${JSON.stringify(offer)}`, async t => {
    const node = await relay(t)
    const first = await open(node, offer)
    first.say({ type: 'subscribe', topic: 'ws', from: 'start', id: 0 })
    for (const n of range(1, EVENTS)) first.say({ type: 'publish', topic: 'ws', data: { n } })
    assert.deepEqual(found(await first.events(EVENTS)), expected(1, EVENTS))
    const { epoch } = first.got.find(({ type }) => type === 'subscribed')
    first.socket.terminate()

    const other = await open(node, offer)
    for (const n of range(EVENTS + 1, 2 * EVENTS)) {
      other.say({ type: 'publish', topic: 'ws', data: { n } })
    }
    other.socket.close(1000)
    const [code] = await once(other.socket, 'close')
    assert.equal(code, 1000)

    const again = await open(node, offer)
    again.say({ type: 'subscribe', topic: 'ws', from: { epoch, seq: EVENTS }, id: 1 })
    assert.deepEqual(found(await again.events(EVENTS)), expected(EVENTS + 1, 2 * EVENTS))
    assert.equal(again.got.find(({ type }) => type === 'subscribed').recovery.mode, 'complete')
    again.socket.close()
    await once(again.socket, 'close')
  })
}

test('a message may come in fragments, with pings between', async t => {
  const node = await relay(t)
  const { socket, say, events } = await open(node, true)
  say({ type: 'subscribe', topic: 'ws', from: 'start', id: 0 })
  const data = '線ö'.repeat(200)
  const bytes = Buffer.from(JSON.stringify({ type: 'publish', topic: 'ws', data, id: 1 }))
  for (let at = 0; at < bytes.length; at++) {
    socket.send(bytes.subarray(at, at + 1), { binary: false, fin: at + 1 === bytes.length })
    if (at % 100 === 0) socket.ping(String(at))
  }
  const [event] = await events(1)
  assert.equal(event.data, data)
  socket.close()
  await once(socket, 'close')
})
