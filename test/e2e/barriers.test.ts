import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { qemuArgv } from '../../src/hypervisor/qemu/argv.ts';
import { collect, until } from '../support/env.ts';
import { machineSpec } from '../unit/hypervisor/spec.ts';

/** Starts where a processor does after a reset: `lock addw $1, 0x500; mfence; hlt`. */
function firmware(): Buffer {
  const bytes = Buffer.alloc(0x10000);
  Buffer.from([0xf0, 0x83, 0x06, 0x00, 0x05, 0x01, 0x0f, 0xae, 0xf0, 0xf4, 0xeb, 0xfd]).copy(bytes, 0xff00);
  Buffer.from([0xe9, 0x0d, 0xff]).copy(bytes, 0xfff0);
  return bytes;
}

/** What the emulator makes of the firmware on a machine of ours with one processor. */
async function translated(machine: 'q35' | 'microvm'): Promise<string> {
  const dir = mkdtempSync('/tmp/kt-firmware-');
  const log = join(dir, 'log');
  writeFileSync(join(dir, 'firmware'), firmware());
  writeFileSync(log, '');
  const argv = qemuArgv(machineSpec({ machine }));
  const option = (name: string): string => argv[argv.indexOf(name) + 1] as string;
  const child = spawn(
    'qemu-system-x86_64',
    [
      ...['-nodefaults', '-display', 'none', '-m', '64M', '-bios', join(dir, 'firmware'), '-d', 'in_asm,op', '-D', log],
      ...['-M', option('-M').replace(',memory-backend=mem', ''), '-accel', option('-accel'), '-cpu', option('-cpu')],
      ...['-smp', option('-smp')],
    ],
    { stdio: ['ignore', 'pipe', 'pipe'] },
  );
  const output = collect(child, 60_000, 'qemu');
  try {
    await until(() => /^0x\w+: .*\bhlt\b[\s\S]*^ exit_tb/m.test(readFileSync(log, 'utf8')), 'the firmware halts');
  } finally {
    child.kill('SIGKILL');
    await output;
  }
  const text = readFileSync(log, 'utf8');
  rmSync(dir, { recursive: true });
  return text;
}

for (const machine of ['q35', 'microvm'] as const)
  test(`one emulated processor of a ${machine} orders its accesses for those who serve its queues`, async () => {
    const text = await translated(machine);
    assert.match(text, /^ call atomic_add_fetch/m);
    assert.match(text, /^ mb /m);
  });
