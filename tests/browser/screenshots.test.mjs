// Pictures of every section, with data as it may be, in the light, in the dark and on a phone. They are for people.
import assert from 'node:assert/strict'
import test from 'node:test'
import {
  DESK, PHONE, browser, client, dashboard, durable, go, isOpen, relay, shoot, until,
} from './support.mjs'

const TOPICS = [
  ['home/kitchen/lamp', 'switched', () => ({ on: true, brightness: 0.8 })],
  ['home/kitchen/temperature', 'measured', n => ({ celsius: 21 + (n % 9) / 10 })],
  ['home/hall/door', undefined, n => (n % 2 ? 'open' : 'closed')],
  ['energy/meter/main', 'measured', n => ({ kW: 1.2 + (n % 7) / 10, kWh: 48_211.5 + n })],
  ['energy/solar/inverter', 'measured', n => ({ kW: (n % 30) / 10, state: 'feeding' })],
  ['office/printer/queue', 'job', n => ({ job: 4700 + n, pages: n % 12, title: 'Minutes of the meeting' })],
  ['weather/station', 'measured', n => ({ celsius: 12.4, wind: n % 20, rain: false })],
  ['build/log', undefined, n => `compiling crate ${n} of 212`],
]

/** A house with people, panels and meters in it. */
async function house(t, node) {
  const open = (user, what) => client(t, node.url(), { user, client: what })
  const [anna, ben, hall] = [open('anna', 'wall tablet, kitchen'), open('ben', 'phone'), open('hall-panel', 'panel 2.1')]
  for (const one of [anna, ben, hall]) await isOpen(one)
  await anna.join('home/kitchen', { device: 'tablet' })
  await ben.join('home/kitchen', { device: 'phone', battery: 0.71 })
  await hall.join('home/hall')
  hall.subscribe('home/#', () => {})
  ben.subscribe('energy/#', () => {})
  await anna.set('home/kitchen/lamp', { on: true, brightness: 0.8, color: '#ffd9a0' })
  await anna.set('home/heating/mode', 'eco')
  await ben.set('energy/tariff', 0.3142)
  await ben.set('home/away', false, { ttl: 3_600_000 })
  await hall.set('config/panel/hall', { layout: 'grid', tiles: ['clock', 'lamp', 'weather', 'door'], refresh: 30, title: 'Hall' })
  await fetch(`${node.url()}/v1/topics/nobody/knows/events`)
  await fetch(`${node.url()}/v1/state/nowhere`)
  let n = 0
  const timer = setInterval(() => {
    const count = 2 + Math.round(2 * Math.sin(n / 9) + Math.random())
    for (let more = 0; more < count; more++) {
      const [topic, name, data] = TOPICS[(n * 3 + more) % TOPICS.length]
      anna.publish(topic, data(n), { name }).catch(() => {})
    }
    n++
  }, 50)
  t.after(() => clearInterval(timer))
}

test('every section is pictured', async t => {
  const node = await relay(t, ...durable(t))
  await house(t, node)
  const made = await dashboard(await browser(t), node.url())
  const curve = made.locator('.chart .stroke').first()
  await until('some history', async () => (await curve.getAttribute('d'))?.split('L').length > 8)
  const ready = {
    overview: '#tiles dd', tail: '#tail-events li:nth-child(20)', topics: '#s-topics tbody th a',
    connections: '#s-connections tbody th', state: '#s-state .clamp', presence: '#s-presence tbody a',
    publish: '#publish-form',
  }
  for (const [name, colorScheme, size] of [
    ['light', 'light', DESK], ['dark', 'dark', DESK], ['phone', 'light', PHONE], ['phone-dark', 'dark', PHONE],
  ]) {
    await made.emulateMedia({ colorScheme })
    await made.setViewportSize(size)
    for (const [section, selector] of Object.entries(ready)) {
      await go(made, section)
      await made.locator(selector).first().waitFor()
      await until('the first paint', () => made.evaluate(() => new Promise(resolve => {
        requestAnimationFrame(() => resolve(true))
      })))
      await shoot(made, `${section}-${name}`)
    }
  }
  await made.setViewportSize(DESK)
  await go(made, 'tail')
  await made.locator('#tail-events summary').nth(2).click()
  await made.locator('.more').waitFor()
  await shoot(made, 'tail-open')
  await go(made, 'connections')
  await made.locator('#s-connections').getByRole('button', { name: /^End/ }).nth(1).click()
  await shoot(made, 'connections-end')
  await made.getByRole('button', { name: 'Keep it' }).click()
  assert.deepEqual(made.its.errors, [])
})
