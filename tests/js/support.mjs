// What the tests share: the real relay, a TCP proxy that cuts, a scripted relay, and waiting.
import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import net from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { connect } from '../../src/web/landline.js'

export const root = fileURLToPath(new URL('../..', import.meta.url))
const require = createRequire(path.join(root, 'target/js/'))
export const { WebSocket, WebSocketServer } = require('ws')

const binary = process.env.LANDLINE ?? path.join(root, 'target/debug/landline')
const LIMIT = 20_000

/** Waits until `condition` holds, and says what was awaited if it does not in time. */
export async function until(what, condition, limit = LIMIT) {
  const end = performance.now() + limit
  for (;;) {
    const found = await condition()
    if (found) return found
    if (performance.now() > end) throw new Error(`waited ${limit} ms for ${what}`)
    await new Promise(resolve => setTimeout(resolve, 5))
  }
}

/** The time between two steps of a load. Nothing is awaited with it. */
export const pace = () => new Promise(resolve => setTimeout(resolve, 1))

/** A relay of its own for one test, which ends with it. */
export async function relay(test, ...flags) {
  const node = { port: 0, dir: null, child: null }
  node.start = async (...more) => {
    const listen = ['serve', '--listen', `127.0.0.1:${node.port}`, '--log-level', 'error']
    const child = spawn(binary, [...listen, ...flags, ...more], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    node.child = child
    let out = ''
    child.stdout.on('data', data => (out += data))
    await until('the relay to listen', () => {
      if (child.exitCode !== null) throw new Error(`the relay ended with ${child.exitCode}`)
      const found = out.match(/listening on http:\/\/127\.0\.0\.1:(\d+)/)
      if (found) node.port = Number(found[1])
      return found
    })
  }
  node.end = async signal => {
    const { child } = node
    if (child.exitCode !== null || child.signalCode !== null) return
    const ended = new Promise(resolve => child.once('exit', resolve))
    child.kill(signal)
    await ended
  }
  node.url = () => `http://127.0.0.1:${node.port}`
  test.after(() => node.end('SIGKILL'))
  await node.start()
  return node
}

/** Flags for a relay that keeps everything in a directory, which goes with the test. */
export function durable(test) {
  const dir = mkdtempSync(path.join(tmpdir(), 'landline-js-'))
  test.after(() => rmSync(dir, { recursive: true, force: true }))
  return ['--data-dir', dir, '--durable', '--durable-state']
}

/** A client that comes back quickly, and whose errors fail the test unless it expects them. */
export function client(test, url, options = {}) {
  const made = connect(url, { WebSocket, backoffMin: 10, backoffMax: 100, ...options })
  const errors = []
  made.on('error', error => errors.push(error))
  test.after(() => made.close())
  return Object.assign(made, { errors })
}

export const isOpen = made => until('the connection', () => made.state === 'open')

/** A TCP proxy: cuts all connections, stalls them, or lets nobody through. */
export async function proxy(test, port) {
  const pairs = new Set()
  const its = { refuses: false, stalls: false, accepted: 0, sent: 0 }
  const server = net.createServer(near => {
    if (its.refuses) return near.destroy()
    its.accepted++
    const far = net.connect(port(), '127.0.0.1')
    const pair = { near, far }
    pairs.add(pair)
    const end = () => {
      near.destroy()
      far.destroy()
      pairs.delete(pair)
    }
    near.on('data', () => its.sent++)
    for (const [from, to] of [[near, far], [far, near]]) {
      from.on('data', data => its.stalls || to.write(data))
      from.on('error', end)
      from.on('close', end)
    }
  })
  await new Promise(resolve => server.listen(0, '127.0.0.1', resolve))
  its.url = `http://127.0.0.1:${server.address().port}`
  its.cut = () => pairs.forEach(({ near }) => near.resetAndDestroy())
  its.close = () => {
    its.cut()
    server.close()
  }
  test.after(its.close)
  return its
}

/** A relay that does what the test says: `script` gets each connection and each message. */
export async function scripted(test, script) {
  const server = new WebSocketServer({ port: 0, host: '127.0.0.1' })
  await new Promise(resolve => server.once('listening', resolve))
  const its = { connections: 0, at: [], url: `ws://127.0.0.1:${server.address().port}` }
  server.on('connection', socket => {
    const number = ++its.connections
    its.at.push(performance.now())
    const say = message => socket.send(JSON.stringify(message))
    socket.on('message', text => {
      const message = JSON.parse(text)
      if (message.type === 'hello') {
        say({ type: 'welcome', id: message.id, heartbeat_ms: 25_000, max_message_bytes: 262_144 })
      }
      script({ message, say, socket, number })
    })
  })
  test.after(() => {
    for (const socket of server.clients) socket.terminate()
    server.close()
  })
  return its
}

export const range = (from, to) => Array.from({ length: to - from + 1 }, (_, at) => from + at)
