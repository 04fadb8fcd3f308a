// Holds custom resources against the schemas of their projects: JSON objects,
// one a line, on standard input; a line for each mistake on standard output.
// The validators do not mind keys that they do not know, and a cluster drops
// those silently; so the objects write down which of their keys were asked for.
// Run by `node --eval`, in the directory whose node_modules has the schemas.

import { readFileSync } from "node:fs";

const packages = {
  "cert-manager.io": "@kubernetes-models/cert-manager",
  "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
  "cilium.io": "@kubernetes-models/cilium",
};

function watched(value, path, unasked) {
  if (Array.isArray(value)) {
    return value.map((item, at) => watched(item, `${path}[${at}]`, unasked));
  }
  if (value === null || typeof value !== "object") {
    return value;
  }
  const inner = {};
  for (const [key, item] of Object.entries(value)) {
    unasked.add(`${path}.${key}`);
    inner[key] = watched(item, `${path}.${key}`, unasked);
  }
  return new Proxy(inner, {
    get(target, key) {
      unasked.delete(`${path}.${String(key)}`);
      return target[key];
    },
  });
}

for (const line of readFileSync(0, "utf8").split("\n").filter(Boolean)) {
  const object = JSON.parse(line);
  const what = `${object.kind}/${object.metadata.name}`;
  const group = object.apiVersion.split("/")[0];
  if (!(group in packages)) {
    console.log(`${what}: no schema for ${object.apiVersion}`);
    continue;
  }
  const { [object.kind]: Model } = await import(`${packages[group]}/${object.apiVersion}/${object.kind}`);
  const unasked = new Set();
  const spec = watched(object.spec, "spec", unasked);
  try {
    const model = new Model({ ...object });
    model.spec = spec;
    model.validate();
  } catch (error) {
    console.log(`${what}: ${error.message}`);
  }
  for (const key of unasked) {
    console.log(`${what}: ${key} is no key of this resource`);
  }
}
