import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { parseChallenges } from '../../../src/registry/challenge.ts';

const plain = (header: string) =>
  parseChallenges(header).map(({ scheme, parameters }) => [scheme, Object.fromEntries(parameters)]);

test('challenges as registries write them', () => {
  for (const [header, expected] of [
    ['', []],
    ['Basic', [['basic', {}]]],
    ['Basic realm="a b, c=d"', [['basic', { realm: 'a b, c=d' }]]],
    [
      'Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push"',
      [
        [
          'bearer',
          { realm: 'https://auth.example/token', service: 'registry.example', scope: 'repository:a/b:pull,push' },
        ],
      ],
    ],
    ['BEARER Realm = "x" , Service=y', [['bearer', { realm: 'x', service: 'y' }]]],
    [
      'Basic realm="a", Bearer realm="b"',
      [
        ['basic', { realm: 'a' }],
        ['bearer', { realm: 'b' }],
      ],
    ],
    [
      'Negotiate dGVzdA==, Basic realm="r"',
      [
        ['negotiate', {}],
        ['basic', { realm: 'r' }],
      ],
    ],
    ['Bearer realm="say \\"hi\\"\\\\"', [['bearer', { realm: 'say "hi"\\' }]]],
    ['Bearer realm="first",realm="second"', [['bearer', { realm: 'first' }]]],
    ['Bearer realm="never ends', [['bearer', {}]]],
    ['=x', []],
    ['Bearer __proto__="x"', [['bearer', Object.fromEntries([['__proto__', 'x']])]]],
  ] as [string, unknown][])
    assert.deepEqual(plain(header), expected, header);
});

test('whatever a header holds, reading it ends without an error', () => {
  fc.assert(
    fc.property(fc.oneof(fc.string({ maxLength: 300 }), fc.stringMatching(/^[Ba,=" \\x~]{0,60}$/)), (header) => {
      for (const { scheme, parameters } of parseChallenges(header)) {
        assert.equal(scheme, scheme.toLowerCase());
        for (const name of parameters.keys()) assert.equal(name, name.toLowerCase());
      }
    }),
    { numRuns: 2000 },
  );
});

test('what is written as the standard has it is read as it was meant', () => {
  const token = fc.stringMatching(/^[A-Za-z][A-Za-z0-9_.-]{0,10}$/);
  const challenge = fc.tuple(
    token,
    fc.array(fc.tuple(token, fc.string({ maxLength: 20 })), { minLength: 1, maxLength: 4 }),
  );
  fc.assert(
    fc.property(fc.array(challenge, { maxLength: 3 }), (challenges) => {
      const quoted = (value: string) => `"${value.replace(/["\\]/g, '\\$&')}"`;
      const text = challenges
        .map(
          ([scheme, parameters]) =>
            `${scheme} ${parameters.map(([name, value]) => `${name}=${quoted(value)}`).join(', ')}`,
        )
        .join(', ');
      const expected = challenges.map(([scheme, parameters]) => [
        scheme.toLowerCase(),
        Object.fromEntries([...parameters].reverse().map(([name, value]) => [name.toLowerCase(), value])),
      ]);
      assert.deepEqual(plain(text), expected);
    }),
  );
});
