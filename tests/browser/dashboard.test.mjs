// The dashboard in a real browser: what it shows, what it does, who can use it.
import assert from 'node:assert/strict'
import { statSync } from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import {
  DESK, PHONE, below, browser, client, curl, dashboard, follows, go, isOpen, relay, root, until,
  violations,
} from './support.mjs'

const SECTIONS = ['overview', 'tail', 'topics', 'connections', 'state', 'presence', 'publish']

/** A dashboard that is connected, with a relay and a window of its own. */
async function opened(t, section, ...flags) {
  const node = await relay(t, ...flags)
  const made = await dashboard(await browser(t), node.url(), section)
  return { node, made }
}

test('the page is small', () => {
  const files = ['index.html', 'dashboard.css', 'dashboard.js']
  const size = files.reduce((sum, file) => sum + statSync(path.join(root, 'src/web', file)).size, 0)
  assert.ok(size <= 60 * 1024, `${size} bytes`)
})

test('it loads without an error and asks nobody but the relay', async t => {
  const { node, made } = await opened(t)
  const elsewhere = []
  for (const section of SECTIONS) {
    await go(made, section)
    assert.equal(await made.locator('main > section:visible').count(), 1, section)
  }
  await until('the lists', () => made.its.requests.some(url => url.includes('/v1/connections')))
  for (const url of made.its.requests) {
    const isOwn = new URL(url).host === `127.0.0.1:${node.port}` || url.startsWith('data:')
    if (!isOwn) elsewhere.push(url)
  }
  assert.deepEqual(elsewhere, [])
  assert.ok(made.its.requests.some(url => url === `ws://127.0.0.1:${node.port}/ws`))
  assert.deepEqual(made.its.errors, [])
})

test('an event that curl publishes is seen within a second', async t => {
  const { node, made } = await opened(t, 'tail')
  await follows(made, '#')
  await curl(node.url(), 'door/back', 'first')
  await made.locator('#tail-events .topic', { hasText: 'door/back' }).waitFor()

  const from = performance.now()
  await curl(node.url(), 'door/front', { open: true })
  await made.locator('#tail-events .data', { hasText: '{"open":true}' }).waitFor()
  const took = performance.now() - from
  console.log(`from curl to the page: ${Math.round(took)} ms`)
  assert.ok(took < 1000, `${took} ms`)
})

test('numbers and charts move, and say so in words', async t => {
  const { node, made } = await opened(t)
  const publisher = client(t, node.url())
  const chart = made.locator('.chart').first()
  const look = async () => ({
    line: await chart.locator('.stroke').getAttribute('d'),
    words: await chart.locator('svg').getAttribute('aria-label'),
  })
  await until('the first curve', async () => (await look()).line)
  const before = await look()
  for (let n = 0; n < 50; n++) publisher.publish('load', n)
  await until('the curve to rise', async () => /highest [1-9]/.test((await look()).words))
  const after = await look()
  assert.notEqual(after.line, before.line)
  assert.match(after.words, /^Published per second, last 1 min: now \d+, lowest \d+, highest \d+$/)
  await made.locator('#tiles', { hasText: 'Published in all50' }).waitFor()
})

test('the tail pauses, filters and opens an event', async t => {
  const { node, made } = await opened(t, 'tail/door%2F%23')
  const publisher = client(t, node.url(), { user: 'anna' })
  const rows = made.locator('#tail-events li:visible')
  await follows(made, 'door/#')
  await publisher.publish('window', 'not asked for')
  await publisher.publish('door/front', { open: true }, { name: 'opened' })
  await publisher.publish('door/back', { open: false })
  await until('both rows', async () => (await rows.count()) === 2)
  assert.match(await rows.first().innerText(), /door\/back/)

  await made.locator('#tail-pause').click()
  await publisher.publish('door/side', 1)
  await made.locator('#tail-facts', { hasText: '1 newer event' }).waitFor()
  assert.equal(await rows.count(), 2)
  await made.locator('#tail-pause').click()
  await until('the third row', async () => (await rows.count()) === 3)

  await made.getByLabel('Filter by text').first().fill('OPENED')
  await until('one row', async () => (await rows.count()) === 1)
  await publisher.publish('door/front', 'closed')
  await made.locator('#tail-facts', { hasText: '1 do not match' }).waitFor()
  assert.equal(await rows.count(), 1)

  await rows.first().locator('summary').click()
  await made.locator('.more pre', { hasText: '"open": true' }).waitFor()
  assert.equal(await made.locator('#tail-pause').getAttribute('aria-pressed'), 'true')
  assert.match(await made.locator('.more').innerText(), /by anna/)
})

test('the form publishes what was written, digit by digit, and says what is wrong before', async t => {
  const { node, made } = await opened(t, 'publish')
  const form = made.locator('#publish-form')
  await form.getByLabel('Topic').fill('home/lamp')
  await form.getByLabel('Event name').fill('switched')
  await form.getByLabel('Data, as JSON').fill('hello')
  await form.getByRole('button', { name: 'Publish' }).click()
  await form.locator('.error', { hasText: 'The data is not JSON' }).waitFor()
  assert.match(await form.locator('.error').innerText(), /quotes: "hello"/)
  assert.equal(await form.getByLabel('Data').getAttribute('aria-invalid'), 'true')
  assert.equal((await fetch(`${node.url()}/v1/topics`).then(answer => answer.json())).topics.length, 0)

  await form.getByLabel('Data, as JSON').fill('{"n": 12345678901234567890, "x": 1.50}')
  await form.getByRole('button', { name: 'Publish' }).click()
  await form.locator('output', { hasText: 'Published as event 1 of home/lamp' }).waitFor()
  const history = await fetch(`${node.url()}/v1/topics/home/lamp/events`).then(answer => answer.text())
  assert.match(history, /"name":"switched","data":{"n":12345678901234567890,"x":1.50}/)
  assert.match(await form.locator('pre').innerText(), /^curl -H 'Event-Name: switched' -d .*home\/lamp\/events'$/)

  await form.getByLabel('Topic').fill('$sys/mine')
  await form.getByRole('button', { name: 'Publish' }).click()
  await form.locator('.error:visible').waitFor()
  assert.deepEqual(made.its.errors, [])
})

test('a key is set, refused, edited and deleted, and the browser of the state follows', async t => {
  const { node, made } = await opened(t, 'state')
  const setter = client(t, node.url(), { user: 'ben' })
  const row = made.locator('#s-state tbody tr', { hasText: 'home/mode' })
  await setter.set('home/mode', 'day')
  await row.filter({ hasText: '"day"' }).waitFor()
  await setter.set('home/mode', 'night')
  await row.filter({ hasText: '"night"' }).filter({ hasText: 'ben' }).waitFor()

  await made.getByRole('button', { name: 'Edit home/mode' }).click()
  const form = made.locator('#set-form')
  assert.equal(await form.getByLabel('Only if version').inputValue(), '2')
  await form.getByLabel('Only if version').fill('1')
  await form.getByLabel('Value, as JSON').fill('{"eco": true}')
  await form.getByRole('button', { name: 'Set' }).click()
  await form.locator('.error', { hasText: 'version 2 now' }).waitFor()
  await form.getByLabel('Only if version').fill('2')
  await form.getByRole('button', { name: 'Set' }).click()
  await form.locator('output', { hasText: 'Set as version 3' }).waitFor()
  await go(made, 'state')
  await row.filter({ hasText: '{"eco":true}' }).waitFor()
  await go(made, 'publish')
  await form.getByRole('button', { name: 'Delete the key' }).click()
  await form.locator('output', { hasText: 'Deleted as version 4' }).waitFor()
  await go(made, 'state')
  await made.locator('#s-state', { hasText: 'No such key.' }).waitFor()
})

test('who is there is seen, and gone when they leave', async t => {
  const { node, made } = await opened(t, 'presence')
  const anna = client(t, node.url(), { user: 'anna' })
  await anna.join('home/hall', { device: 'tablet' })
  const row = made.locator('#s-presence tbody tr', { hasText: 'home/hall' })
  await row.filter({ hasText: 'anna' }).filter({ hasText: '{"device":"tablet"}' }).waitFor()
  await anna.leave('home/hall')
  await row.waitFor({ state: 'detached' })
})

test('connections are listed, and one is ended when that was meant', async t => {
  const { node, made } = await opened(t, 'connections')
  const anna = client(t, node.url(), { user: 'anna', client: 'wall tablet' })
  const codes = []
  anna.on('state', ({ code }) => code && codes.push(code))
  await isOpen(anna)
  const row = made.locator('#s-connections tbody tr', { hasText: 'anna · wall tablet' })
  await row.waitFor()
  await made.locator('#s-connections tbody', { hasText: '(here)' }).waitFor()

  await row.getByRole('button', { name: /^End c/ }).click()
  await made.locator('dialog', { hasText: 'is anna at 127.0.0.1' }).waitFor()
  await made.getByRole('button', { name: 'Keep it' }).click()
  assert.deepEqual(codes, [])
  await row.getByRole('button', { name: /^End c/ }).click()
  await made.getByRole('button', { name: 'End it' }).click()
  await until('anna to be told', () => codes.includes(4103))
  await isOpen(anna)
  await go(made, 'overview')
  await made.locator('#disconnects', { hasText: 'disconnected' }).waitFor()
})

test('it works below a path of a proxy, and says that connections are not for everybody', async t => {
  const node = await relay(t)
  const url = await below(t, node, '/relay/')
  const made = await dashboard(await browser(t), url, 'connections')
  await made.locator('#connections-refused:visible').waitFor()
  assert.match(await made.locator('#connections-refused').innerText(), /^[A-Z].*\.$/)
  await go(made, 'publish')
  await made.locator('#publish-topic').fill('a')
  await made.locator('#publish-form button[type=submit]').click()
  await made.locator('#publish-form output', { hasText: 'Published' }).waitFor()
  assert.ok(made.its.requests.includes(`${url.replace('http', 'ws')}/ws`))
  assert.ok(made.its.requests.every(asked => asked.includes('/relay/') || asked.startsWith('data:')))
})

test('what others wrote is text, whatever it says', async t => {
  const { node, made } = await opened(t, 'tail')
  const evil = '<img src=x onerror=globalThis.hacked=1>'
  const script = '"><script>globalThis.hacked=1</script>'
  const writer = client(t, node.url(), { user: evil, client: script })
  await follows(made, '#')
  await writer.publish(`a/${evil}`, { [evil]: script }, { name: evil })
  await writer.set(`k/${evil}`, { [script]: evil })
  await writer.join(`room ${evil}`, { info: evil })
  for (const [section, places] of [
    ['tail', ['.topic', '.who', '.data']], ['topics', ['tbody a']], ['state', ['tbody th', '.clamp']],
    ['connections', ['tbody .name']], ['presence', ['tbody a', '.clamp']],
  ]) {
    await go(made, section)
    for (const place of places) {
      await made.locator(`#s-${section} ${place}`, { hasText: '<img src=x' }).first().waitFor()
    }
  }
  await go(made, 'tail')
  await made.locator('#tail-events summary').click()
  await made.locator('.more pre', { hasText: '<script>' }).waitFor()
  assert.equal(await made.locator('main img, main script, .side img').count(), 0)
  assert.equal(await made.evaluate(() => globalThis.hacked), undefined)
  assert.deepEqual(made.its.errors, [])
})

test('a keyboard is enough', async t => {
  const { node, made } = await opened(t)
  await curl(node.url(), 'a', 1)
  await made.keyboard.press('Tab')
  assert.equal(await made.evaluate(() => document.activeElement.id), 'skip')
  await made.keyboard.press('Enter')
  assert.equal(await made.evaluate(() => document.activeElement.id), 'main')
  await made.locator('#theme').focus()
  for (const section of SECTIONS) {
    await made.keyboard.press('Tab')
    await made.keyboard.press('Enter')
    await made.locator(`#s-${section}:visible`).waitFor()
    const current = await made.evaluate(() => document.activeElement.getAttribute('aria-current'))
    assert.equal(current, 'page', section)
    const outline = await made.evaluate(() => getComputedStyle(document.activeElement).outlineStyle)
    assert.equal(outline, 'solid', section)
  }
  await go(made, 'topics')
  const head = made.locator('#s-topics thead th', { hasText: 'Tail' })
  await head.locator('button').focus()
  await made.keyboard.press('Enter')
  await made.locator('th[aria-sort=descending]', { hasText: 'Tail' }).waitFor()
  await made.keyboard.press('Space')
  await made.locator('th[aria-sort=ascending]', { hasText: 'Tail' }).waitFor()
})

test('axe-core has nothing serious to say, in the light, in the dark and on a phone', async t => {
  const { node, made } = await opened(t)
  const anna = client(t, node.url(), { user: 'anna' })
  await anna.publish('home/lamp', { on: true })
  await anna.set('home/mode', 'day')
  await anna.join('home/hall')
  const found = []
  for (const [scheme, size] of [['light', DESK], ['dark', DESK], ['light', PHONE]]) {
    await made.emulateMedia({ colorScheme: scheme })
    await made.setViewportSize(size)
    for (const section of SECTIONS) {
      await go(made, section)
      const isListed = ['topics', 'connections', 'state', 'presence'].includes(section)
      if (isListed) await made.locator(`#s-${section} tbody th`).first().waitFor()
      if (section === 'tail') await follows(made, '#')
      await anna.publish('home/lamp', { on: false })
      if (section === 'tail') await made.locator('#tail-events summary').first().waitFor()
      for (const line of await violations(made)) found.push(`${scheme} ${size.width} ${section}: ${line}`)
    }
  }
  assert.deepEqual(found, [])
})

test('it fits 320 pixels, which is also a zoom of 400 percent', async t => {
  const { node, made } = await opened(t)
  await curl(node.url(), `home/${'a-rather-long-name-'.repeat(8)}`, 'x'.repeat(500))
  await made.setViewportSize({ width: 320, height: 640 })
  for (const section of SECTIONS) {
    await go(made, section)
    const width = await made.evaluate(() => document.documentElement.scrollWidth)
    assert.ok(width <= 320, `${section} is ${width} pixels wide`)
  }
  const low = await made.evaluate(() => [...document.querySelectorAll('button, nav a, input, select')]
    .filter(node => node.getClientRects().length && node.getBoundingClientRect().height < 44)
    .map(node => `${node.textContent || node.id} ${node.getBoundingClientRect().height}`))
  assert.deepEqual(low, [])
})

test('the theme is that of the system until somebody chooses, and then stays', async t => {
  const { made } = await opened(t)
  const ground = () => made.evaluate(() => getComputedStyle(document.body).backgroundColor)
  await made.emulateMedia({ colorScheme: 'light' })
  const light = await ground()
  await made.emulateMedia({ colorScheme: 'dark' })
  const dark = await ground()
  assert.notEqual(light, dark)
  await made.getByRole('button', { name: 'Theme: auto' }).click()
  assert.equal(await ground(), light)
  await made.reload()
  await made.getByRole('button', { name: 'Theme: light' }).waitFor()
  assert.equal(await ground(), light)
})

test('a relay that is gone and comes back: the page says both, and the tail shows the gap', async t => {
  const { node, made } = await opened(t, 'tail')
  await follows(made, '#')
  await curl(node.url(), 'a', 1)
  await made.locator('#tail-events summary').waitFor()
  await node.end('SIGKILL')
  await made.locator('#link', { hasText: 'Connection lost, trying again' }).waitFor()
  await node.start()
  await made.locator('#link[data-state=open]', { hasText: 'Connected' }).waitFor()
  await curl(node.url(), 'a', 2)
  await made.locator('#tail-events .gap', { hasText: 'Gap in a' }).waitFor()
  await made.locator('#tail-events summary', { hasText: 'a' }).nth(1).waitFor()
  assert.match(await made.locator('.gap').innerText(), /epoch changed.*new life/)
})
