/**
 * The one error class. Callers decide on `code`, never on text.
 *
 * Every code is documented in docs/errors.md and maps onto one ttrpc status and one command-line exit code.
 */
export const ERROR_CODES = {
  // code: [ttrpc status (google.rpc.Code), exit code of `run`/`create`/`exec`]
  INVALID_ARGUMENT: [3, 125],
  UNSUPPORTED_FLAG: [12, 125],
  NOT_FOUND: [5, 125],
  ALREADY_EXISTS: [6, 125],
  CONFLICT: [9, 125],
  NOT_RUNNING: [9, 125],
  PERMISSION_DENIED: [7, 125],
  IMAGE_INVALID: [3, 125],
  IMAGE_DIGEST_MISMATCH: [15, 125],
  IMAGE_PLATFORM: [9, 125],
  IMAGE_IN_USE: [9, 125],
  REGISTRY_DENIED: [16, 125],
  REGISTRY_UNREACHABLE: [14, 125],
  REGISTRY_UNTRUSTED: [9, 125],
  REGISTRY_PROTOCOL: [9, 125],
  NETWORK_UNAVAILABLE: [14, 125],
  PORT_IN_USE: [9, 125],
  DISK_FULL: [8, 125],
  RESOURCE_EXHAUSTED: [8, 125],
  SECRET_MISSING: [9, 125],
  SETUP_INCOMPLETE: [9, 125],
  GUEST_IMAGE_INVALID: [9, 125],
  VMM_START_FAILED: [14, 125],
  VMM_EXITED: [14, 125],
  HELPER_EXITED: [14, 125],
  GUEST_PANIC: [14, 125],
  GUEST_BOOT_TIMEOUT: [4, 125],
  AGENT_UNAVAILABLE: [14, 125],
  AGENT_ERROR: [13, 125],
  KEEPER_UNAVAILABLE: [14, 125],
  ENGINE_UNAVAILABLE: [14, 125],
  COMMAND_NOT_FOUND: [5, 127],
  COMMAND_NOT_EXECUTABLE: [7, 126],
  DEADLINE_EXCEEDED: [4, 125],
  CANCELLED: [1, 125],
  STATE_CORRUPT: [15, 125],
  UNIMPLEMENTED: [12, 125],
  INTERNAL: [13, 125],
} as const satisfies Record<string, readonly [number, number]>;

export type ErrorCode = keyof typeof ERROR_CODES;

export interface ErrorDetails {
  /** The step that failed, as `--trace-startup` names it: "image", "boot", "create-container", … */
  phase?: string;
  /** Lines that a person needs to believe the cause: console tail, VMM's stderr, errno and path. Already escaped. */
  evidence?: readonly string[];
  /** What to do next, in the imperative. */
  hint?: string;
  cause?: unknown;
}

/** Plain-data form that crosses the HTTP API. */
export interface ErrorBody {
  code: ErrorCode;
  message: string;
  phase?: string;
  evidence?: string[];
  hint?: string;
}

export class KataError extends Error {
  readonly code: ErrorCode;
  readonly phase: string | undefined;
  readonly evidence: readonly string[];
  readonly hint: string | undefined;
  /** Failures of the undo that this error set off; they never replace it. */
  readonly undoErrors: unknown[] = [];

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = 'KataError';
    this.code = code;
    this.phase = details.phase;
    this.evidence = details.evidence ?? [];
    this.hint = details.hint;
  }

  get exitCode(): number {
    return ERROR_CODES[this.code][1];
  }

  toBody(): ErrorBody {
    return {
      code: this.code,
      message: this.message,
      ...(this.phase === undefined ? {} : { phase: this.phase }),
      ...(this.evidence.length === 0 ? {} : { evidence: [...this.evidence] }),
      ...(this.hint === undefined ? {} : { hint: this.hint }),
    };
  }

  static fromBody(body: ErrorBody): KataError {
    const code = Object.hasOwn(ERROR_CODES, body.code) ? body.code : 'INTERNAL';
    return new KataError(code, body.message, body);
  }

  /** Wraps anything thrown; a KataError passes unchanged, a file-system "no space" becomes DISK_FULL. */
  static from(error: unknown, phase?: string): KataError {
    if (error instanceof KataError) return error;
    const errno = (error as NodeJS.ErrnoException | null)?.code;
    const text = error instanceof Error ? error.message : String(error);
    if (errno === 'ENOSPC' || errno === 'EDQUOT')
      return new KataError('DISK_FULL', text, { phase, cause: error, hint: 'free disk space under the state root' });
    return new KataError('INTERNAL', text, { phase, cause: error });
  }
}
