import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { KataError } from '../base/index.ts';
import type { Context } from './context.ts';
import { checkoutDir } from './locations.ts';

const UNIT = 'kata.service';
const MARK = '# Written by `kata install --systemd`; `kata uninstall --systemd` removes it.';
/** `kata-keeper daemon`: another engine serves this state root. */
const EXIT_LOCK_HELD = 75;
/** What an engine takes of the environment beside its places. */
const VARIABLES = ['KATA_CONF_FILE', 'KATA_CERTS_DIR', 'KATA_VSOCK', 'KATA_CGROUP_PARENT'];

/** Makes the engine a service: it starts when the host boots, and with it the containers whose policies say so. */
export function installUnit(context: Context, dir: string): { unit: string } {
  const unit = join(dir, UNIT);
  checkOwn(unit);
  mkdirSync(dir, { recursive: true });
  writeFileSync(unit, unitText(context), { mode: 0o644 });
  return { unit };
}

/** Idempotent. */
export function uninstallUnit(dir: string): { unit: string } {
  const unit = join(dir, UNIT);
  checkOwn(unit);
  rmSync(unit, { force: true });
  return { unit };
}

function checkOwn(unit: string): void {
  let text: string;
  try {
    text = readFileSync(unit, 'utf8');
  } catch {
    return;
  }
  if (!text.startsWith(MARK))
    throw new KataError('ALREADY_EXISTS', `${unit} was not written by kata`, {
      hint: 'move it away, or --unit-dir DIR',
    });
}

/** Only the engine is the service's: sandboxes live on when it is stopped, and are taken over by the next one. */
function unitText({ locations, env }: Context): string {
  const { root, run, assets } = locations;
  const command = [join(checkoutDir(import.meta.dirname), 'kata'), '--root', root, '--run', run, 'engine', 'run'];
  const variables = { KATA_ASSETS: assets, ...Object.fromEntries(VARIABLES.map((name) => [name, env[name]])) };
  const environment = Object.entries(variables)
    .filter(([, value]) => value !== undefined && value !== '')
    .map(([name, value]) => `Environment=${quoted(`${name}=${value}`)}\n`);
  return `${MARK}
[Unit]
Description=Engine of kata: containers in virtual machines
After=local-fs.target network-online.target
Wants=network-online.target

[Service]
Type=exec
ExecStart=${command.map((word) => quoted(word).replaceAll('$', '$$$$')).join(' ')}
${environment.join('')}KillMode=process
Restart=on-failure
RestartSec=1
# Another engine serves this state root, started by a command or a keeper.
SuccessExitStatus=${EXIT_LOCK_HELD}
RestartPreventExitStatus=${EXIT_LOCK_HELD}
LimitNOFILE=1048576
TasksMax=infinity

[Install]
WantedBy=multi-user.target
`;
}

/** A word of a unit file: systemd.syntax(7), systemd.unit(5) "Specifiers". */
const quoted = (word: string): string => {
  if (/[\n\r\0]/.test(word)) throw new KataError('INVALID_ARGUMENT', `a unit cannot hold ${JSON.stringify(word)}`);
  return `"${word.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('%', '%%')}"`;
};
