import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Containerd } from './containerd.ts';

export interface SpecResult {
  name: string;
  state: 'passed' | 'failed' | 'skipped';
  seconds: number;
  /** Why it failed or was skipped. */
  message?: string;
}

export interface CritestOptions {
  /** A regular expression; the specs that match are run, by default all. */
  focus?: string;
  timeoutMs?: number;
}

/** Pulls one image of the outside world by its digest, which no stand-in can have. */
const IMPOSSIBLE = 'public image with digest should be pulled';
const DEFAULT_TIMEOUT_MS = 60 * 60_000;

interface Report {
  SpecReports: {
    ContainerHierarchyTexts: string[] | null;
    LeafNodeText: string;
    LeafNodeType: string;
    State: string;
    RunTime: number;
    Failure?: { Message?: string };
  }[];
}

/** Runs critest's specs on a runtime handler. Specs that the focus leaves out are not among the results. */
export async function runCritest(
  containerd: Containerd,
  handler: string,
  { focus, timeoutMs = DEFAULT_TIMEOUT_MS }: CritestOptions,
): Promise<SpecResult[]> {
  const report = join(containerd.directory, 'critest.json');
  const args = [
    `--runtime-handler=${handler}`,
    '-ginkgo.no-color',
    '-ginkgo.seed=1',
    `-ginkgo.skip=${IMPOSSIBLE}`,
    `-ginkgo.json-report=${report}`,
    `-ginkgo.timeout=${Math.round(timeoutMs / 1000)}s`,
  ];
  if (focus !== undefined) args.push(`-ginkgo.focus=${focus}`);
  const { stdout, stderr } = await containerd.run('critest', args, { timeoutMs: timeoutMs + 60_000 });
  writeFileSync(join(containerd.directory, 'critest.log'), `${stdout}${stderr}`);
  const suites = read(report, `${stdout.toString().slice(-4000)}\n${stderr.slice(-4000)}`);
  return suites
    .flatMap(({ SpecReports }) => SpecReports)
    .filter(({ LeafNodeType, State }) => LeafNodeType === 'It' || State === 'failed')
    .flatMap((spec) => {
      // On one line, and without addresses: equal failures read equal.
      const message = spec.Failure?.Message?.replaceAll(/0x[0-9a-f]+/g, '0x')
        .replaceAll(/\s+/g, ' ')
        .trim();
      const state: SpecResult['state'] = spec.State === 'passed' || spec.State === 'skipped' ? spec.State : 'failed';
      // A spec that skips itself says why.
      if (state === 'skipped' && !message) return [];
      const name = [...(spec.ContainerHierarchyTexts ?? []), spec.LeafNodeText].join(' ').replace(/^\[k8s\.io\] /, '');
      const seconds = Math.round(spec.RunTime / 1e8) / 10;
      return [{ name, state, seconds, ...(message ? { message: message.slice(0, 300) } : {}) }];
    })
    .sort((a, b) => (a.name < b.name ? -1 : 1));
}

function read(path: string, output: string): Report[] {
  try {
    return JSON.parse(readFileSync(path, 'utf8'));
  } catch (error) {
    throw new Error(`critest wrote no report: ${(error as Error).message}\n${output}`);
  }
}
