/** Limits of a container, or of a sandbox on its host. Absent: no limit. */
export interface Resources {
  /** CPU time per wall time: 1.5 is one and a half processors. */
  cpus?: number;
  memoryBytes?: number;
  /** Number of tasks. */
  pids?: number;
}
