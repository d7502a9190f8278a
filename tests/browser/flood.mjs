// A process of its own that publishes so many events per second: `flood.mjs PORT PER_SECOND TOPIC`.
import { createRequire } from 'node:module'

const require = createRequire(new URL('../../target/js/', import.meta.url))
const WebSocket = require('ws')
const [port, perSecond, topic] = process.argv.slice(2)
const socket = new WebSocket(`ws://127.0.0.1:${port}/ws`, ['landline.v1'])
const from = performance.now()
let sent = 0

socket.on('open', () => setInterval(() => {
  const due = Math.floor((performance.now() - from) * perSecond / 1000)
  // A relay that takes them more slowly is not to be swamped by what piles up here.
  if (socket.bufferedAmount > 1 << 20) return
  for (; sent < due; sent++) {
    const data = { n: sent, value: Math.sin(sent), where: 'a sensor in the hall' }
    socket.send(JSON.stringify({ type: 'publish', topic, data }))
  }
}, 5))
process.stdin.on('end', () => process.exit()).resume()
