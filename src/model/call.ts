/** Bounds of one call to another process. Every call has both or at least a bound in time. */
export interface CallOptions {
  /** Ends the wait: the call fails with CANCELLED; the other side may still carry it out. */
  signal?: AbortSignal;
  /** The call fails with DEADLINE_EXCEEDED after this many milliseconds. Absent: the callee's documented default. */
  timeoutMs?: number;
}

/** Of a call that must not be carried out twice by whoever repeats it. */
export interface OnceOptions extends CallOptions {
  /** Names the operation: the keeper makes such a call once, and answers a repetition as the first one. */
  operation?: string | undefined;
}
