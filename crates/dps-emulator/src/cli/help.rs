//! The long help: how to start, the configuration file, faults, the control interface, and what is not emulated.

pub(super) const LONG_HELP: &str = r#"START
  dps-emulator --id-scope 0ne000AB12C --group plant=BASE64KEY --hub hub-a.azure-devices.net --ca-out ca.pem
  Let your device trust ca.pem, take https://localhost:8443 as the global device endpoint and 0ne000AB12C as ID scope, and
  sign with the key derived from the group key. Clients that cannot change the port need --listen 127.0.0.1:443; clients
  that cannot change the host name need global.azure-devices-provisioning.net in their hosts file (the certificate has it).

CONFIGURATION FILE (--config)
  listen = "127.0.0.1:8443"
  id-scope = "0ne000AB12C"
  quota = "1000/60s"
  hub = [{ name = "hub-a.azure-devices.net", weight = 3 }, { name = "hub-b.azure-devices.net" }]
  [[group]]
  name = "plant"
  key = "BASE64"              # secondary-key, hub (static allocation), disabled = true,
  reprovision = "migrate"     # migrate | reset | never
  payload = { site = "7" }    # returned with the assignment, as a custom allocation policy does
  [[enrollment]]
  id = "gateway-1"
  key = "BASE64"              # secondary-key, device-id, hub, reprovision, payload, disabled

FAULTS (--faults FILE, or POST /faults with one rule as JSON)
  [[fault]]
  action = "status"           # see the list
  name = "maintenance"        # shown in the journal
  call = "register"           # register | poll | lookup | any (default)
  registration-id = "dev-1"   # or registration-id-prefix
  reused-connection = true    # only on connections that have carried a call before (false: on new ones)
  nth = 3                     # or every = 10, or probability = 0.05; default: always
  from-ms = 0                 # since the start; until-ms too
  times = 5                   # at most
  Actions and their own fields:
    delay            delay-ms                     answer late
    status           status, retry-after, error-code, intermediary = true (empty body, not from the service)
    reset                                         TCP reset, nothing processed
    lose-reply                                    processed and counted, then TCP reset
    silence                                       nothing processed, and no answer ever
    web-page         status                       an HTML page (200 by default) of something in between; nothing processed
    rewrite          set = { "registrationState.deviceId" = "x" }, remove = ["status"]
                                                  processed; members of the JSON answer are changed or left out
    stuck-assigning                               assigning until the service gives up (--give-up-ms)
    fail             error-code, message          the operation ends failed (400207 400208 400209 404201 409203 …)
    malformed-body   body, content-type           half of the true body if `body` is absent
    wrong-hub        host                         the operation ends on another hub
    disabled, unassigned                          the operation ends with this status
  Delays add up; of the others the first rule that fits acts. An unknown action or field is refused.

CONTROL (--control 127.0.0.1:9443, plain HTTP, JSON)
  GET /stats  POST /reset-stats  GET /journal?after=N&limit=M  GET /healthz
  POST /clock {"offset-seconds":-7200}
  GET|POST /quota {"count":500,"seconds":60,"shape":"sliding"}   POST /assigning {"milliseconds":500}
  GET|POST /hubs {"hubs":[{"name":"hub-c.azure-devices.net","weight":1}]}
  POST /groups {"name":"plant","key":"BASE64","disabled":true}   POST /enrollments {"id":"dev-1","key":"BASE64"}
  GET|DELETE /registrations/{id}   GET|POST|DELETE /faults   DELETE /faults/{id}

NOT EMULATED
  TPM, X.509 and certificate requests, MQTT and AMQP, the service API, geo-latency allocation, the webhook of a custom allocation
  (a payload can be returned). They are refused in plain words. Nothing was verified against live Azure; where its behaviour is not documented there is a flag.
"#;
