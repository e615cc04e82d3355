'use strict';
// Registers one device through Microsoft's SDK, unmodified, and prints the hub it was assigned to.
//
//   NODE_EXTRA_CA_CERTS=ca.pem node register.js HOST ID_SCOPE REGISTRATION_ID KEY [PAYLOAD-JSON]
//
// HOST is a name without a port: over HTTPS the SDK always uses 443. The CA must be in the environment before node starts, because
// node reads it once. Exit status: 0 assigned, 1 refused or failed, 2 wrong usage.

const { ProvisioningDeviceClient } = require('azure-iot-provisioning-device');
const { Http } = require('azure-iot-provisioning-device-http');
const { SymmetricKeySecurityClient } = require('azure-iot-security-symmetric-key');

/** Resolves to the SDK's result ({registrationId, assignedHub, deviceId, payload…}) or rejects with the SDK's error. */
async function register({ host, idScope, registrationId, key, payload }) {
  const security = new SymmetricKeySecurityClient(registrationId, key);
  const client = ProvisioningDeviceClient.create(host, idScope, new Http(), security);
  if (payload !== undefined) client.setProvisioningPayload(payload);
  return client.register();
}

module.exports = { register };

if (require.main === module) {
  const [host, idScope, registrationId, key, payload] = process.argv.slice(2);
  if (!key) {
    console.error('usage: node register.js HOST ID_SCOPE REGISTRATION_ID KEY [PAYLOAD-JSON]');
    process.exit(2);
  }
  register({ host, idScope, registrationId, key, payload: payload && JSON.parse(payload) }).then(
    (result) => console.log(result.assignedHub),
    (error) => {
      console.error(`${error.name}: ${error.message}`);
      process.exit(1);
    },
  );
}
