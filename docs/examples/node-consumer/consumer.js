// SPDX-License-Identifier: Apache-2.0
// Prints the changes of a map, one JSON object per line, from its typed feed (`mapbridge feed`).
//
//   node consumer.js SERVER CLUSTER MAP SCHEMA_PROTO [COUNT]
//
// Nothing here knows the map: which fields it has is read from the stream of layouts. SCHEMA_PROTO is
// schemas/mapbridge/v1/schema.proto, the message in which a layout is stored.
import { readFileSync } from "node:fs";
import { AckPolicy, connect } from "nats";
import protobuf from "protobufjs";

const [server, cluster, map, schemaPath, countText] = process.argv.slice(2);
let left = countText === undefined ? Infinity : Number(countText);

// A byte outside [A-Za-z0-9-] is '_' and two hexadecimal digits.
const escaped = [...Buffer.from(map)]
  .map((byte) => {
    const letter = String.fromCharCode(byte);
    return /[A-Za-z0-9-]/.test(letter) ? letter : `_${byte.toString(16).padStart(2, "0")}`;
  })
  .join("");

const connection = await connect({ servers: server });
const manager = await connection.jetstreamManager();
const MapSchema = protobuf
  .parse(readFileSync(schemaPath, "utf8"), { keepCase: true })
  .root.lookupType("mapbridge.v1.MapSchema");

const known = new Map();

// The type `Changes` of a layout, by the fingerprint that a message of the feed names.
async function changesOf(layout) {
  if (!known.has(layout)) {
    const stored = await manager.streams.getMessage(`MAPBRIDGE_${cluster}_SCHEMA`, {
      last_by_subj: `mapbridge.${cluster}.schema.${escaped}.${layout}`,
    });
    const schema = MapSchema.decode(stored.data);
    const parsed = protobuf.parse(schema.proto, { keepCase: true });
    known.set(layout, parsed.root.lookupType(`${parsed.package}.Changes`));
  }
  return known.get(layout);
}

const stream = `MAPBRIDGE_${cluster}_FEED`;
const made = await manager.consumers.add(stream, {
  filter_subject: `mapbridge.${cluster}.feed.typed.${escaped}`,
  ack_policy: AckPolicy.None,
});
const consumer = await connection.jetstream().consumers.get(stream, made.name);
const messages = await consumer.consume();
for await (const message of messages) {
  const Changes = await changesOf(message.headers.get("Mapbridge-Layout"));
  for (const change of Changes.decode(message.data).change) {
    if (left <= 0) break;
    left -= 1;
    const options = { longs: String, enums: String, bytes: String, defaults: true, arrays: true };
    console.log(JSON.stringify(change.constructor.toObject(change, options)));
  }
  if (left <= 0) break;
}
await connection.close();
