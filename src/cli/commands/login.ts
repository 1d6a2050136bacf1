import { KataError } from '../../base/index.ts';
import type { Command } from '../command.ts';
import type { Flags } from '../flags.ts';
import { askLine, askSecret, passwordFromStdin } from '../password.ts';
import { REFUSED_LOGIN_FLAGS } from '../refused.ts';

const HUB = 'docker.io';

export const command: Command = {
  name: 'login',
  summary: 'Keep a login for a registry',
  usage: '[OPTIONS] [REGISTRY]',
  flags: [
    { long: 'username', short: 'u', kind: 'string', value: 'NAME', help: 'User name' },
    { long: 'password-stdin', kind: 'bool', help: 'Read the password from standard input' },
  ],
  refused: REFUSED_LOGIN_FLAGS,
  minArguments: 0,
  maxArguments: 1,
  examples: ['kata login registry.example:5000', 'kata login -u me --password-stdin registry.example < password.txt'],
  notes: [
    'The login is kept where docker keeps it: config.json in $DOCKER_CONFIG or ~/.docker, or the helper that it names. ' +
      'The registry is asked first, and what it does not take is not kept.',
  ],
  async run(context, flags) {
    const registry = registryOf(flags.args[0]);
    await context.ensureSetup(['base']);
    const login = await readLogin(flags);
    const { DockerConfig, proxyOf } = await import('../../registry/index.ts');
    const proxy = proxyOf(context.env);
    await context.call('checkLogin', {
      body: { registry, credentials: login, ...(proxy === undefined ? {} : { proxy }) },
    });
    const { path } = await new DockerConfig(context.env).store(registry, login);
    if (path !== undefined)
      await context.err(
        `WARNING: the password is kept unencrypted in ${path}; a credential helper would keep it better\n`,
      );
    await context.out('Login Succeeded\n');
    return 0;
  },
};

/** As docker: an address is taken for its host. */
export function registryOf(text: string | undefined): string {
  if (text === undefined) return HUB;
  const host = text.replace(/^https?:\/\//, '').split('/')[0] ?? '';
  if (!/^[a-zA-Z0-9.\-:[\]]{1,255}$/.test(host) || URL.parse(`https://${host}`) === null)
    throw new KataError('INVALID_ARGUMENT', `"${text.slice(0, 300)}" is not a registry`, {
      hint: 'write its host, with a port where it has one: registry.example:5000',
    });
  return ['index.docker.io', 'registry-1.docker.io'].includes(host) ? HUB : host;
}

async function readLogin(flags: Flags): Promise<{ username: string; password: string }> {
  const given = flags.string('username');
  if (flags.bool('password-stdin')) {
    if (given === undefined || given === '')
      throw new KataError('INVALID_ARGUMENT', 'Must provide --username with --password-stdin');
    return complete(given, await passwordFromStdin());
  }
  if (!process.stdin.isTTY)
    throw new KataError('INVALID_ARGUMENT', 'a password is asked for on a terminal only', {
      hint: 'pipe it in: kata login -u NAME --password-stdin',
    });
  const username = given ?? (await askLine('Username: '));
  return complete(username, await askSecret('Password: '));
}

function complete(username: string, password: string): { username: string; password: string } {
  if (username === '' || username.includes(':') || password === '')
    throw new KataError('INVALID_ARGUMENT', 'a login needs a name without a colon, and a password');
  return { username, password };
}
