// Chromium driven bare, over its debugging protocol: playwright has every page believe that it is seen and has the
// focus, and whether a page is seen is what is tested here.
import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { FLAGS, WebSocket, chromium, until } from './support.mjs'

/** Two tabs in one window: a page, and another one that can be brought before it. */
export async function tabs(test, url) {
  const dir = mkdtempSync(path.join(tmpdir(), 'landline-tabs-'))
  const flags = [...FLAGS, '--headless', '--remote-debugging-port=0', `--user-data-dir=${dir}`]
  const child = spawn(chromium, [...flags, 'about:blank'], { stdio: ['ignore', 'ignore', 'pipe'] })
  const ended = new Promise(resolve => child.once('exit', resolve))
  let close = async () => child.kill('SIGKILL')
  test.after(async () => {
    // Ended in order, it leaves no process behind that still writes there.
    await Promise.race([close(), ended])
    await ended
    rmSync(dir, { recursive: true, force: true, maxRetries: 30, retryDelay: 100 })
  })
  const address = await new Promise((resolve, reject) => {
    let said = ''
    child.once('exit', code => reject(new Error(`Chromium ended with ${code}: ${said}`)))
    child.stderr.on('data', text => {
      said += text
      const found = said.match(/DevTools listening on (ws:\S+)/)
      if (found) resolve(found[1])
    })
  })
  const socket = new WebSocket(address)
  await new Promise(resolve => socket.once('open', resolve))
  const waiting = new Map()
  socket.on('message', text => {
    const { id, result, error } = JSON.parse(text)
    const { resolve, reject } = waiting.get(id) ?? {}
    waiting.delete(id)
    if (error) reject?.(new Error(error.message))
    else resolve?.(result)
  })
  let ids = 0
  const send = (method, params, sessionId) => new Promise((resolve, reject) => {
    waiting.set(++ids, { resolve, reject })
    socket.send(JSON.stringify({ id: ids, method, params, sessionId }))
  })
  close = () => send('Browser.close').catch(() => {})
  const { targetId } = await send('Target.createTarget', { url })
  const { sessionId } = await send('Target.attachToTarget', { targetId, flatten: true })
  const evaluate = async (body, argument) => {
    const expression = `(${body})(${JSON.stringify(argument) ?? ''})`
    const asked = { expression, awaitPromise: true, returnByValue: true }
    const { result, exceptionDetails } = await send('Runtime.evaluate', asked, sessionId)
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description)
    return result.value
  }
  // A tab is at an empty page first.
  const isThere = address => location.href === address && document.readyState === 'complete'
  await until('the page to be there', () => evaluate(isThere, url))
  const freeze = isFrozen => send('Page.setWebLifecycleState', { state: isFrozen ? 'frozen' : 'active' }, sessionId)
  return {
    evaluate,
    freeze,
    hide: () => send('Target.createTarget', { url: 'about:blank' }),
    show: () => send('Target.activateTarget', { targetId }),
  }
}
