import { spawn, spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { writeCpio } from '../src/setup/guest/cpio.ts';

/** Builds the one-file initrd of the bare boot into `dir` and answers its path. */
export function buildBareInitrd(dir: string): string {
  const init = join(dir, 'bare-init');
  const built = spawnSync('cc', ['-O2', '-static', '-o', init, join(import.meta.dirname, 'bare-init.c')], {
    encoding: 'utf8',
  });
  if (built.status !== 0) throw new Error(`cc: ${built.stderr}`);
  const initrd = join(dir, 'bare.cpio');
  writeFileSync(initrd, writeCpio([{ path: 'init', kind: 'file', mode: 0o755, data: readFileSync(init) }]));
  return initrd;
}

/**
 * Milliseconds from exec(qemu) to the first instruction of process 1 with nothing around it: the engine's kernel, no devices, a
 * one-file initrd. The machine and the command line are fixed, an anchor for the speed of the host: what the engine
 * leaves out of its own boot (initialisations, byte copies, the timer's calibration) stays in this one.
 */
export function bareBoot(kernel: string, initrd: string, cmdline: string, memoryMib: number): Promise<number> {
  return new Promise((resolve, reject) => {
    const start = process.hrtime.bigint();
    const child = spawn(
      'qemu-system-x86_64',
      [
        ...['-M', 'q35,smm=off,hpet=off,sata=off,usb=off,i8042=off,smbus=off,vmport=off,graphics=off'],
        ...['-accel', 'tcg,thread=multi', '-cpu', 'max', '-m', `${memoryMib}M`, '-smp', '1'],
        ...['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot'],
        ...['-kernel', kernel, '-initrd', initrd, '-append', cmdline],
        ...['-chardev', 'stdio,id=marker', '-device', 'isa-debugcon,iobase=0xe9,chardev=marker'],
      ],
      { stdio: ['ignore', 'pipe', 'pipe'] },
    );
    const timer = setTimeout(() => {
      child.kill('SIGKILL');
      reject(new Error('the bare kernel did not reach process 1 within 60 s'));
    }, 60_000);
    // The debug port writes byte by byte: a chunk may end anywhere in the marker.
    let marker = '';
    child.stdout.on('data', (chunk: Buffer) => {
      marker += chunk.toString('latin1');
      if (!marker.includes('INIT')) return;
      clearTimeout(timer);
      child.kill('SIGKILL');
      resolve(Number(process.hrtime.bigint() - start) / 1e6);
    });
    child.once('error', reject);
  });
}
