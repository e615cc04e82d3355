'use strict';
// What an unmodified Azure device may expect of the emulator. Started by .ci/interop-node, which sets the environment.

const assert = require('node:assert/strict');
const { createHmac } = require('node:crypto');
const { register } = require('./register.js');

const { DPS_HOST: host, DPS_ID_SCOPE: idScope, DPS_GROUP_KEY: groupKey } = process.env;
const { DPS_INDIVIDUAL_ID: individualId, DPS_INDIVIDUAL_KEY: individualKey } = process.env;
const hubs = process.env.DPS_HUBS.split(',');

const derivedKey = (id) => createHmac('sha256', Buffer.from(groupKey, 'base64')).update(id).digest('base64');

function assertAssigned(result, id) {
  assert.equal(result.status.toLowerCase(), 'assigned');
  assert.equal(result.registrationId, id);
  assert.equal(result.deviceId, id);
  assert.ok(hubs.includes(result.assignedHub), `assigned to ${result.assignedHub}, which is not one of ${hubs}`);
}

/** A refusal must reach the SDK's user as the SDK's own class for 401, not as a parse error or a time-out. */
const unauthorized = (error) => {
  assert.equal(error.name, 'UnauthorizedError', `${error.name}: ${error.message}`);
  return true;
};

const cases = {
  'a device with a group-derived key is assigned': async () => {
    const registrationId = 'sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6';
    assertAssigned(await register({ host, idScope, registrationId, key: derivedKey(registrationId) }), registrationId);
  },
  'a registration ID may hold every character of the grammar': async () => {
    const registrationId = 'plant_7.line:3-a';
    assertAssigned(await register({ host, idScope, registrationId, key: derivedKey(registrationId) }), registrationId);
  },
  'a device of an individual enrollment is assigned': async () => {
    assertAssigned(await register({ host, idScope, registrationId: individualId, key: individualKey }), individualId);
  },
  'registering again gives the same hub': async () => {
    const device = { host, idScope, registrationId: 'device-0001', key: derivedKey('device-0001') };
    const first = await register(device);
    const second = await register(device);
    assert.equal(second.assignedHub, first.assignedHub);
  },
  'a payload is accepted': async () => {
    const registrationId = 'device-0002';
    const payload = { model: 'th-1', note: 'grüße' };
    assertAssigned(await register({ host, idScope, registrationId, key: derivedKey(registrationId), payload }), registrationId);
  },
  'a key derived for another device is refused': async () => {
    await assert.rejects(register({ host, idScope, registrationId: 'device-0003', key: derivedKey('device-0004') }), unauthorized);
  },
  'an individual enrollment is not opened by the group key': async () => {
    await assert.rejects(register({ host, idScope, registrationId: individualId, key: derivedKey(individualId) }), unauthorized);
  },
  'an unknown ID scope is refused': async () => {
    const registrationId = 'device-0005';
    await assert.rejects(register({ host, idScope: '0ne00000000', registrationId, key: derivedKey(registrationId) }), (error) => {
      assert.match(error.name, /^(UnauthorizedError|DeviceNotFoundError)$/, `${error.name}: ${error.message}`);
      return true;
    });
  },
};

/** The SDK has no overall limit; a case that hangs must fail with its name. */
function within(seconds, promise) {
  let timer;
  const limit = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no outcome within ${seconds} s`)), seconds * 1000);
  });
  return Promise.race([promise, limit]).finally(() => clearTimeout(timer));
}

(async () => {
  let failed = 0;
  // One after the other, so that a failure's emulator log lines stand together.
  for (const [name, run] of Object.entries(cases)) {
    try {
      await within(30, run());
      console.log(`ok    ${name}`);
    } catch (error) {
      failed += 1;
      console.log(`FAIL  ${name}\n      ${error.stack}`);
    }
  }
  console.log(`interop-node: ${Object.keys(cases).length - failed} passed, ${failed} failed`);
  // The SDK's agent may keep sockets open after a failure.
  process.exit(failed ? 1 : 0);
})();
