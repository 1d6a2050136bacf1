// Import directions of docs/ARCHITECTURE.md. Read by test/architecture, which also proves that each rule can fail.
const rooms = {
  base: [],
  model: ['base'],
  oci: ['base'],
  ttrpc: ['base', 'model', 'rpc'],
  rpc: [],
  os: ['base', 'model', 'ttrpc', 'rpc'],
  image: ['base', 'model', 'os', 'oci'],
  registry: ['base', 'oci'],
  hypervisor: ['base', 'model', 'os'],
  agent: ['base', 'model', 'oci', 'ttrpc', 'rpc'],
  storage: ['base', 'model', 'os', 'oci'],
  network: ['base', 'model', 'os'],
  api: ['base'],
  config: ['base'],
  sandbox: ['base', 'model', 'os', 'oci', 'rpc', 'hypervisor', 'agent', 'network', 'storage', 'image', 'api'],
  engine: ['base', 'model', 'os', 'oci', 'hypervisor', 'agent', 'network', 'storage', 'image', 'registry', 'api', 'sandbox'],
  shim: ['base', 'model', 'os', 'oci', 'config', 'network', 'ttrpc', 'rpc', 'agent', 'storage', 'api', 'sandbox', 'engine'],
  setup: ['base', 'model', 'os', 'image'],
  dashboard: ['base', 'api'],
  cli: ['base', 'api', 'config', 'dashboard', 'registry', 'setup'],
};

const forbidden = Object.entries(rooms).map(([room, allowed]) => ({
  name: `direction-${room}`,
  severity: 'error',
  comment: `src/${room} may import ${allowed.length === 0 ? 'no other room' : allowed.join(', ')}`,
  from: { path: `^src/${room}/` },
  to: { path: '^src/[^/]+/', pathNot: `^src/(${[room, ...allowed].join('|')})/` },
}));

module.exports = {
  forbidden: [
    ...forbidden,
    {
      name: 'one-door',
      severity: 'error',
      comment: 'a room is entered by its index.ts (rpc: generated files; setup and api: the files that start-up time asks for; image: the check, which unpacks nothing)',
      from: { path: '^src/([^/]+)/' },
      to: {
        path: '^src/([^/]+)/',
        pathNot: '^src/($1|rpc)/|/index\\.ts$|^src/api/(client|schemas|routes|server)\\.ts$|^src/image/check\\.ts$|^src/base/',
      },
    },
    { name: 'no-circular', severity: 'error', from: {}, to: { circular: true } },
    {
      name: 'nothing-imports-tests',
      severity: 'error',
      from: { path: '^src/' },
      to: { path: '^(test|bench)/' },
    },
  ],
  options: {
    tsConfig: { fileName: 'tsconfig.json' },
    tsPreCompilationDeps: true,
    doNotFollow: { path: 'node_modules' },
    exclude: { path: '^(node_modules|dist|native)/' },
  },
};
