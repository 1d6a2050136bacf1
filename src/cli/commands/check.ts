import { type CheckResult, loadChecks } from '../../setup/index.ts';
import { type Command, FLAG_JSON } from '../command.ts';
import type { Context } from '../context.ts';
import { escapeControls } from '../escape.ts';

const MARKS: Record<CheckResult['status'], string> = { ok: 'ok', warning: 'WARN', failed: 'FAIL', skipped: 'skip' };

export const command: Command = {
  name: 'check',
  summary: 'Check what this host offers and run a container in a virtual machine',
  usage: '[OPTIONS]',
  flags: [
    { long: 'no-boot', kind: 'bool', help: 'Only look; run nothing in a virtual machine' },
    { ...FLAG_JSON, help: 'Print JSON: {ok, checks: [{name, status, detail, phase, evidence, fix, durationMs}]}' },
  ],
  minArguments: 0,
  maxArguments: 0,
  examples: ['kata check', 'kata check --json'],
  notes: [
    'Exits 1 when something fails; warnings cost speed or a feature. Installs nothing and ends within two minutes.',
  ],
  async run(context, flags) {
    const { checkHost } = await loadChecks();
    const checks = await checkHost(context.locations);
    if (!flags.bool('no-boot')) checks.push(await boot(context, checks));
    const passed = !checks.some(({ status }) => status === 'failed');
    if (flags.bool('json')) await context.out(`${JSON.stringify({ ok: passed, checks }, undefined, 2)}\n`);
    else await context.out(`${checks.map(describe).join('')}${summary(checks)}\n`);
    return passed ? 0 : 1;
  },
};

async function boot(context: Context, checks: readonly CheckResult[]): Promise<CheckResult> {
  const { checkBoot, skippedBoot } = await import('../boot-check.ts');
  const missing = checks.filter(({ status }) => status === 'failed').map(({ name }) => name);
  return missing.length > 0 ? skippedBoot(missing) : checkBoot(context);
}

function describe({ name, status, detail, phase, evidence = [], fix }: CheckResult): string {
  const lines = [`${MARKS[status].padEnd(5)} ${name.padEnd(17)} ${escapeControls(detail)}`];
  if (phase !== undefined) lines.push(`        phase: ${phase}`);
  for (const line of evidence) lines.push(`        | ${escapeControls(line)}`);
  if (fix !== undefined) lines.push(`        try: ${escapeControls(fix)}`);
  return `${lines.join('\n')}\n`;
}

function summary(checks: readonly CheckResult[]): string {
  const count = (status: CheckResult['status']) => checks.filter((check) => check.status === status).length;
  return `${count('ok')} ok, ${count('warning')} warnings, ${count('failed')} failed`;
}
