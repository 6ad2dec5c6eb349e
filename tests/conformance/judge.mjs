// Counts a leg's checks and compares what failed with what was expected to.
//
//     judge.mjs FOLDER --suite PACKAGE --exit CODE
//               (--required VERSION | --scenarios A,B) [--expected FILE]
//
// FOLDER/checks is what the suite wrote. A warning is a failure here too: the suite warns where the
// specification says SHOULD. FILE is in the suite's own format for expected failures, one line an
// entry. An entry that no longer fails is an error, so that the file stays true. Skipped is what the
// suite does not try because a capability was not declared.
import { existsSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { parseArgs } from 'node:util';

const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
        suite: { type: 'string' },
        exit: { type: 'string' },
        required: { type: 'string' },
        scenarios: { type: 'string' },
        expected: { type: 'string' },
    },
});
const folder = positionals[0];

// Optional extensions of the protocol that the server behind the router has not got.
const LEFT_OUT = /^tasks-/;

// The entries of a list in YAML, below a key of the first level.
function listed(file, key) {
    let within = false;
    const entries = [];
    for (const line of readFileSync(file, 'utf8').split('\n')) {
        const heading = line.match(/^(\w+):/);
        if (heading) within = heading[1] === key;
        const entry = line.match(/^\s+- (?:scenario: )?([^\s#]+)/);
        if (within && entry) entries.push(entry[1]);
    }
    return entries;
}

// Every scenario that ran, with its checks.
function results() {
    const found = new Map();
    const place = join(folder, 'checks');
    for (const name of existsSync(place) ? readdirSync(place) : []) {
        const scenario = name.replace(/-\d{4}-\d\d-\d\dT[^/]*$/, '').replace(values.required ? /^server-/ : /^$/, '');
        const file = join(place, name, 'checks.json');
        if (!LEFT_OUT.test(scenario) && existsSync(file)) {
            found.set(scenario, JSON.parse(readFileSync(file, 'utf8')));
        }
    }
    return found;
}

const found = results();
const wanted = values.required
    ? listed(join(values.suite, 'requirements', `${values.required}.yaml`), 'server')
    : values.scenarios.split(',');
const expected = new Set(values.expected ? listed(values.expected, 'server') : []);
const unexpected = [];
const used = new Set();
const count = { SUCCESS: 0, FAILURE: 0, WARNING: 0, SKIPPED: 0, expected: 0 };

for (const scenario of wanted) {
    if (!found.has(scenario)) unexpected.push(`${scenario}: did not run`);
}
for (const [scenario, checks] of [...found].sort()) {
    for (const { id, name, status, errorMessage, details } of checks) {
        if (status === 'SUCCESS' || status === 'SKIPPED') count[status] += 1;
        if (status !== 'FAILURE' && status !== 'WARNING') continue;
        const entry = [scenario, `${scenario}:${id}`].find((it) => expected.has(it));
        if (entry) {
            used.add(entry);
            count.expected += 1;
            continue;
        }
        count[status] += 1;
        const why = errorMessage ?? details?.message ?? '';
        unexpected.push(`${scenario}:${id} (${name}) ${status}: ${why}`);
    }
}
for (const entry of expected) {
    if (!used.has(entry)) unexpected.push(`${entry}: expected to fail, but did not`);
}
// The suite's own verdict counts too, where what it disliked is not among the checks.
const verdict = Number(values.exit);
if (verdict !== 0 && count.expected === 0 && unexpected.length === 0) {
    unexpected.push(`the suite ended with exit code ${verdict}`);
}

const cells = [count.SUCCESS, count.FAILURE, count.WARNING, count.SKIPPED, count.expected];
const widths = [7, 7, 7, 7, 9];
const row = cells.map((cell, i) => String(cell).padStart(widths[i])).join(' ');
console.log(`${basename(folder).padEnd(30)} ${row}`);
for (const line of unexpected) console.log(`    ${line.replaceAll('\n', ' ').slice(0, 400)}`);
writeFileSync(join(folder, 'unexpected.txt'), unexpected.map((line) => `${line}\n`).join(''));
process.exit(unexpected.length === 0 ? 0 : 1);
