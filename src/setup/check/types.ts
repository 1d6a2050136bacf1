/** What one probe found. `failed` keeps containers from running; `warning` costs speed or a feature. */
export interface CheckResult {
  name: string;
  status: 'ok' | 'warning' | 'failed' | 'skipped';
  /** One sentence: what is there, or why it is not. */
  detail: string;
  /** Of a failure: the step that would fail. */
  phase?: string;
  evidence?: readonly string[];
  /** What to do, in the imperative. */
  fix?: string;
  durationMs: number;
}

/** A result without what the runner of checks adds. */
export type Finding = Omit<CheckResult, 'name' | 'durationMs'>;

export interface CheckPlaces {
  assets: string;
  root: string;
  run: string;
}

export interface Check {
  name: string;
  timeoutMs: number;
  probe(places: CheckPlaces, signal: AbortSignal): Promise<Finding>;
}

export const ok = (detail: string): Finding => ({ status: 'ok', detail });
export const warning = (detail: string, fix?: string, evidence?: readonly string[]): Finding => ({
  status: 'warning',
  detail,
  fix,
  evidence,
});
export const failed = (phase: string, detail: string, fix: string, evidence?: readonly string[]): Finding => ({
  status: 'failed',
  phase,
  detail,
  fix,
  evidence,
});
