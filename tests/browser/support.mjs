// What the browser's tests share: Chromium, a page that tells what went wrong in it, looks, and loads.
import { spawn } from 'node:child_process'
import { mkdirSync, readFileSync } from 'node:fs'
import http from 'node:http'
import { createRequire } from 'node:module'
import net from 'node:net'
import path from 'node:path'
import { after } from 'node:test'
import { root } from '../js/support.mjs'

export * from '../js/support.mjs'

const require = createRequire(path.join(root, 'target/js/'))
const playwright = require('playwright-core')
const axe = readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8')
const screenshots = path.join(root, 'target/screenshots')

export const chromium = process.env.CHROMIUM ?? '/usr/bin/chromium'
export const FLAGS = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync',
  '--disable-background-networking', '--disable-component-update', '--disable-domain-reliability',
  '--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1',
]
export const PHONE = { width: 360, height: 740 }
export const DESK = { width: 1280, height: 800 }

let chrome = null

/** A window of its own for one test, in a browser that the tests of a file share. */
export async function browser(test, options = {}) {
  chrome ??= playwright.chromium.launch({ executablePath: chromium, headless: true, args: FLAGS })
  const made = await (await chrome).newContext({
    viewport: DESK, reducedMotion: 'reduce', locale: 'en-GB', timezoneId: 'UTC', ...options,
  })
  test.after(() => made.close())
  return made
}

after(async () => (await chrome)?.close())

/** A page that keeps what went wrong in it, and all that it asked for. */
export async function page(context) {
  const made = await context.newPage()
  const its = { errors: [], requests: [] }
  made.on('pageerror', error => its.errors.push(String(error)))
  made.on('console', message => {
    if (['error', 'warning'].includes(message.type())) its.errors.push(message.text())
  })
  made.on('request', request => its.requests.push(request.url()))
  made.on('websocket', socket => its.requests.push(socket.url()))
  return Object.assign(made, { its })
}

/** The dashboard of a relay at one of its sections, connected. */
export async function dashboard(context, url, section = 'overview') {
  const made = await page(context)
  await made.goto(`${url}/#${section}`)
  await made.locator('#link[data-state=open]').waitFor()
  return made
}

/** Goes to a section by its link. */
export async function go(made, section) {
  await made.locator(`nav a[href="#${section}"]`).click()
  await made.locator(`#s-${section}`).waitFor()
}

/** Waits until the tail follows a topic or pattern. */
export async function follows(made, topic) {
  await made.locator('#tail-facts div', { hasText: /^Following/ }).filter({ hasText: topic }).waitFor()
}

/** Takes a picture to be looked at. */
export async function shoot(made, name) {
  mkdirSync(screenshots, { recursive: true })
  await made.screenshot({ path: path.join(screenshots, `${name}.png`) })
}

/** What axe-core calls serious or critical, as lines for people. */
export async function violations(made) {
  // The policy of the page forbids a script that stands in it; the debugger may run one.
  await made.evaluate(axe)
  const { violations } = await made.evaluate(() => globalThis.axe.run(document))
  return violations.filter(({ impact }) => ['serious', 'critical'].includes(impact))
    .flatMap(({ id, help, nodes }) => nodes.map(({ target }) => `${id}: ${help} (${target})`))
}

/** Publishes with curl, as people do. */
export function curl(url, topic, data) {
  const target = `${url}/v1/topics/${topic.split('/').map(encodeURIComponent).join('/')}/events`
  const child = spawn('curl', ['-sf', '-d', JSON.stringify(data), target], { stdio: 'ignore' })
  return new Promise((resolve, reject) => {
    child.once('error', reject)
    child.once('exit', code => (code ? reject(new Error(`curl ended with ${code}`)) : resolve()))
  })
}

/** A reverse proxy that serves a relay below a path, as an ingress does. */
export async function below(test, node, prefix) {
  const server = http.createServer((request, response) => {
    if (!request.url.startsWith(prefix)) return response.writeHead(404).end()
    const { method } = request
    const headers = { ...request.headers, 'x-forwarded-for': '192.168.1.20' }
    const where = { host: '127.0.0.1', port: node.port, path: request.url.slice(prefix.length - 1) }
    const onward = http.request({ ...where, method, headers }, answer => {
      response.writeHead(answer.statusCode, answer.headers)
      answer.pipe(response)
    })
    request.pipe(onward)
  })
  server.on('upgrade', (request, near) => {
    const far = net.connect(node.port, '127.0.0.1')
    const head = [`GET ${request.url.slice(prefix.length - 1)} HTTP/1.1`]
    const { rawHeaders: raw } = request
    for (let at = 0; at < raw.length; at += 2) head.push(`${raw[at]}: ${raw[at + 1]}`)
    far.write(`${head.join('\r\n')}\r\n\r\n`)
    near.pipe(far).pipe(near)
    near.on('error', () => far.destroy())
    far.on('error', () => near.destroy())
  })
  await new Promise(resolve => server.listen(0, '127.0.0.1', resolve))
  test.after(() => {
    server.close()
    server.closeAllConnections()
  })
  return `http://127.0.0.1:${server.address().port}${prefix.replace(/\/$/, '')}`
}

/** A network cable to a relay: once it is pulled, what was connected through it is dead without a word. */
export async function cable(test, node) {
  const sockets = new Set()
  const dead = []
  let isPulled = false
  const server = net.createServer(near => {
    if (isPulled) return near.destroy()
    const far = net.connect(node.port, '127.0.0.1')
    const pair = [near, far]
    sockets.add(pair)
    for (const [from, to] of [pair, [far, near]]) {
      from.on('data', data => sockets.has(pair) && to.write(data))
      from.on('error', () => {})
      from.on('close', () => sockets.has(pair) && to.destroy())
    }
    test.after(() => pair.forEach(socket => socket.destroy()))
  })
  await new Promise(resolve => server.listen(0, '127.0.0.1', resolve))
  test.after(() => server.close())
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    pull() {
      isPulled = true
      for (const [near] of sockets) dead.push(near)
      sockets.clear()
    },
    /** With a `word`, what was dead hears of it now, as the kernel of a machine that is back tells its sockets. */
    plug({ word = false } = {}) {
      isPulled = false
      if (word) dead.forEach(socket => socket.destroy())
    },
  }
}
