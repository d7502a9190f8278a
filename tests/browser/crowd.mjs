// A process of its own that opens so many WebSockets to a relay and keeps them: `crowd.mjs PORT COUNT`.
// Bare sockets, because a client for each would cost more than what is to be measured.
import net from 'node:net'

const [port, count] = process.argv.slice(2).map(Number)
const head = [
  'GET /ws HTTP/1.1', `Host: 127.0.0.1:${port}`, 'Connection: Upgrade', 'Upgrade: websocket',
  'Sec-WebSocket-Version: 13', 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==',
].join('\r\n')

function open() {
  return new Promise((resolve, reject) => {
    const socket = net.connect(port, '127.0.0.1', () => socket.write(`${head}\r\n\r\n`))
    socket.once('data', () => {
      socket.resume()
      resolve()
    })
    socket.on('error', reject)
  })
}

for (let left = count; left > 0; left -= 100) {
  await Promise.all(Array.from({ length: Math.min(100, left) }, open))
}
process.stdout.write('there\n')
process.stdin.on('end', () => process.exit()).resume()
