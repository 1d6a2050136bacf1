import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { KataError } from '../../../src/base/index.ts';
import { compileTemplate, toJson, type Value } from '../../../src/cli/template.ts';

const data: Value = {
  Names: 'web',
  Labels: new Map([
    ['b', '2'],
    ['a', '1'],
  ]),
  Args: ['x', 'y'],
  State: { Pid: 3, Running: true, Error: '' },
  Label: (key) => `<${key}>`,
  Empty: [],
  Nothing: null,
  Html: '<a&b>',
};

/** What Go's text/template with docker's functions prints for `data`. */
const table: [string, string][] = [
  ['{{.Names}}', 'web'],
  ['a{{ .State.Pid }}b', 'a3b'],
  ['{{json .State}}', '{"Pid":3,"Running":true,"Error":""}'],
  ['{{json .Labels}}', '{"a":"1","b":"2"}'],
  ['{{json .Html}}', '"<a&b>"'],
  ['{{json .Nothing}}', 'null'],
  ['{{.Args}} {{.Labels}} {{.State}}', '[x y] map[a:1 b:2] {3 true }'],
  ['{{join .Args ","}}', 'x,y'],
  ['{{join .Args "," | upper | printf "%s!"}}', 'X,Y!'],
  ['{{.Names | upper | lower | title}}', 'Web'],
  ['{{range .Args}}[{{.}}]{{end}}', '[x][y]'],
  ['{{range $i, $a := .Args}}{{$i}}={{$a}} {{end}}', '0=x 1=y '],
  ['{{range $k, $v := .Labels}}{{$k}}:{{$v}};{{end}}', 'a:1;b:2;'],
  ['{{range .Empty}}x{{else}}none{{end}}', 'none'],
  ['{{range .Nothing}}x{{else}}nil{{end}}', 'nil'],
  ['{{range 3}}{{.}}{{end}}', '012'],
  ['{{range .Args}}{{if eq . "y"}}{{break}}{{end}}{{.}}{{end}}', 'x'],
  ['{{range .Args}}{{if eq . "x"}}{{continue}}{{end}}{{.}}{{end}}', 'y'],
  ['{{range .Args}}{{$.Names}}{{end}}', 'webweb'],
  ['{{with .State}}{{.Pid}}{{end}}', '3'],
  ['{{with .Empty}}x{{else}}{{.Names}}{{end}}', 'web'],
  ['{{with $s := .State}}{{$s.Pid}}{{end}}', '3'],
  ['{{if .State.Running}}up{{else}}down{{end}}', 'up'],
  ['{{if .Empty}}a{{else if .Names}}b{{else}}c{{end}}', 'b'],
  ['{{if not .State.Running}}a{{end}}', ''],
  ['{{if and .Names (gt .State.Pid 2)}}y{{end}}', 'y'],
  ['{{or .Empty .Nothing "z"}}', 'z'],
  ['{{and .Empty (index .Args 9)}}', '[]'],
  ['{{eq .State.Pid 1 2 3}} {{ne .Names "x"}} {{le 2 2}} {{lt "a" "b"}}', 'true true true true'],
  ['{{index .Args 1}} {{index .Labels "a"}} {{index .Labels "zz"}}|', 'y 1 |'],
  ['{{.Labels.a}} {{.Labels.zz}}', '1 <no value>'],
  ['{{len .Args}} {{len .Names}} {{len .Labels}}', '2 3 2'],
  ['{{slice .Names 1 2}}', 'e'],
  ['{{.Label "com.x"}} {{.Label (index .Args 0)}}', '<com.x> <x>'],
  ['{{"com.y" | .Label}}', '<com.y>'],
  [
    '{{printf "%-5s|%5s|%03d|%.2f|%q|%x|%t|%v|%%" "a" "b" 7 1.5 "q" 255 true .Args}}',
    'a    |    b|007|1.50|"q"|ff|true|[x y]|%',
  ],
  ['{{printf "%d %d" 1}}', '1 %!d(MISSING)'],
  ['{{print "a" 1 2 "b"}}', 'a1 2b'],
  ['{{println .Names 1}}', 'web 1\n'],
  ['{{truncate .Names 2}}{{pad .Names 1 2}}|', 'we web  |'],
  ['{{(index .Args 0)}}{{(.State).Pid}}', 'x3'],
  ['{{$x := 1}}{{range .Args}}{{$x = .}}{{end}}{{$x}}', 'y'],
  ['{{$x := 1}}{{if true}}{{$x := 2}}{{$x}}{{end}}{{$x}}', '21'],
  ['a {{- " b " -}} c', 'a b c'],
  ['a  {{- /* note */ -}}  c', 'ac'],
  ['a{{/* note */}}c', 'ac'],
  ['{{`raw\\n`}}{{"q\\n\\t\\"\\x41\\u00e9"}}', 'raw\\nq\n\t"Aé'],
  ['{{true}} {{nil | json}} {{0x10}} {{-3}} {{1.5}}', 'true null 16 -3 1.5'],
  ['{{split "a,b" ","}}', '[a b]'],
  ['}} {', '}} {'],
];

for (const [source, expected] of table)
  test(`template ${JSON.stringify(source)}`, () => {
    assert.equal(compileTemplate(source).execute(data), expected);
  });

const wrong = [
  '{{',
  '{{.Names',
  '{{if .Names}}',
  '{{end}}',
  '{{else}}',
  '{{if}}x{{end}}',
  '{{.Nope}}',
  '{{.Names.Nope}}',
  '{{.Nothing.X}}',
  '{{nope .Names}}',
  '{{$nope}}',
  '{{index .Args 9}}',
  '{{range .State}}{{end}}',
  '{{eq 1 "a"}}',
  '{{upper 1}}',
  '{{.Names "x"}}',
  '{{"a" "b"}}',
  '{{break}}',
  '{{define "x"}}{{end}}',
  '{{template "x"}}',
  '{{"unclosed}}',
  '{{.Names | "x"}}',
  '{{.}}}{{.Names.constructor}}',
  '{{.constructor}}',
  '{{.__proto__}}',
  '{{.State.toString}}',
  '{{@}}',
  '{{(.Names}}',
  '{{range 100000000}}{{end}}',
];
for (const source of wrong)
  test(`template ${JSON.stringify(source)} is refused`, () => {
    assert.throws(
      () => compileTemplate(source).execute(data),
      (error) => error instanceof KataError && error.code === 'INVALID_ARGUMENT',
    );
  });

test('text without actions passes unchanged, whatever it holds', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'grapheme' }), (text) => {
      fc.pre(!text.includes('{{'));
      assert.equal(compileTemplate(text).execute(data), text);
    }),
  );
});

test('any string comes back from a string literal, a field and json', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), (text) => {
      fc.pre(text.isWellFormed());
      assert.equal(compileTemplate('{{.V}}').execute({ V: text }), text);
      assert.equal(JSON.parse(compileTemplate('{{json .V}}').execute({ V: text })), text);
      const literal = `"${text.replace(/["\\]/g, '\\$&').replaceAll('\n', '\\n')}"`;
      assert.equal(compileTemplate(`{{${literal}}}`).execute(data), text);
    }),
  );
});

test('json of any value is the value: maps sorted, no key special', () => {
  const key = fc.oneof(fc.string(), fc.constantFrom('__proto__', 'constructor', 'toString'));
  const scalar = fc.oneof(fc.string(), fc.integer(), fc.boolean(), fc.constant(null));
  fc.assert(
    fc.property(fc.array(fc.tuple(key, scalar)), (entries) => {
      const map = new Map<string, Value>(entries);
      const parsed: unknown = JSON.parse(toJson(map));
      assert.deepEqual(new Map(Object.entries(parsed as object)), map);
    }),
  );
});

test('range and if do what a loop and a branch do', () => {
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.string(), fc.boolean())), (items) => {
      const rows: Value = items.map(([Name, On]) => ({ Name, On }));
      const source = '{{range $i, $r := .R}}{{if $r.On}}{{$i}}{{.Name}}{{else}}-{{end}},{{else}}empty{{end}}';
      const expected =
        items.length === 0 ? 'empty' : items.map(([name, on], at) => `${on ? at + name : '-'},`).join('');
      assert.equal(compileTemplate(source).execute({ R: rows }), expected);
    }),
  );
});

test('no template text makes the evaluator fail in another way than with a KataError', () => {
  const piece = fc.oneof(
    fc.string({ maxLength: 6 }),
    fc.constantFrom(
      '{{',
      '}}',
      '.',
      '$',
      '$x',
      ':=',
      '=',
      '|',
      '(',
      ')',
      ' ',
      '.Names',
      '.Args',
      '"a"',
      '1',
      'range',
      'if',
      'end',
      'else',
      'with',
      'json',
      'index',
      'and',
      'nil',
      '-',
      '{{- ',
      ' -}}',
      '/*',
      '*/',
    ),
  );
  fc.assert(
    fc.property(fc.array(piece, { maxLength: 14 }), (pieces) => {
      try {
        compileTemplate(pieces.join('')).execute(data);
      } catch (error) {
        assert.ok(error instanceof KataError, String(error));
      }
    }),
    { numRuns: 3000 },
  );
});
