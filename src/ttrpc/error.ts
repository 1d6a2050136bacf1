import type { ErrorCode } from '../base/index.ts';
import type { Any } from '../rpc/ttrpc.ts';

/** google.rpc.Code, the values used here. */
export const STATUS = {
  OK: 0,
  CANCELLED: 1,
  UNKNOWN: 2,
  INVALID_ARGUMENT: 3,
  DEADLINE_EXCEEDED: 4,
  NOT_FOUND: 5,
  ALREADY_EXISTS: 6,
  PERMISSION_DENIED: 7,
  RESOURCE_EXHAUSTED: 8,
  FAILED_PRECONDITION: 9,
  UNIMPLEMENTED: 12,
  INTERNAL: 13,
  UNAVAILABLE: 14,
} as const;

/** A typed detail of a status; `value` is the serialised message that `typeUrl` names. */
export interface StatusDetail {
  typeUrl: string;
  value: Buffer;
}

/**
 * A call that did not succeed: the peer's status, or one made here (CANCELLED, DEADLINE_EXCEEDED; UNAVAILABLE when the
 * connection is gone; RESOURCE_EXHAUSTED for a message over the limit; INTERNAL for an answer that cannot be read).
 */
export class TtrpcError extends Error {
  /** google.rpc.Code. */
  readonly status: number;
  readonly details: readonly StatusDetail[];
  /** True when the peer answered, false when the failure was found on this side. */
  readonly fromPeer: boolean;
  /** "service/method" of a call that failed on this side. */
  readonly call: string | undefined;

  constructor(
    status: number,
    message: string,
    options: { details?: readonly Any[]; fromPeer?: boolean; call?: string } = {},
  ) {
    super(message);
    this.name = 'TtrpcError';
    this.status = status;
    this.details = (options.details ?? []).map((d) => ({ typeUrl: d.type_url, value: d.value }));
    this.fromPeer = options.fromPeer ?? false;
    this.call = options.call;
  }

  /** The serialised detail of this type, whatever host its URL names ("type.googleapis.com/x.Y" and "x.Y" are one). */
  detail(type: string): Buffer | undefined {
    return this.details.find((d) => d.typeUrl === type || d.typeUrl.endsWith(`/${type}`))?.value;
  }
}

const CODES: Readonly<Record<number, ErrorCode>> = {
  [STATUS.CANCELLED]: 'CANCELLED',
  [STATUS.INVALID_ARGUMENT]: 'INVALID_ARGUMENT',
  [STATUS.DEADLINE_EXCEEDED]: 'DEADLINE_EXCEEDED',
  [STATUS.NOT_FOUND]: 'NOT_FOUND',
  [STATUS.ALREADY_EXISTS]: 'ALREADY_EXISTS',
  [STATUS.PERMISSION_DENIED]: 'PERMISSION_DENIED',
  [STATUS.RESOURCE_EXHAUSTED]: 'RESOURCE_EXHAUSTED',
  [STATUS.FAILED_PRECONDITION]: 'CONFLICT',
  [STATUS.UNIMPLEMENTED]: 'UNIMPLEMENTED',
};

/** The error code that a peer's status means; `unavailable` names that peer. Undefined: the status says nothing more. */
export const errorCodeOf = (status: number, unavailable: ErrorCode): ErrorCode | undefined =>
  status === STATUS.UNAVAILABLE ? unavailable : CODES[status];

/** What failed, for a person: a failure of this side says whom it was talking to. The method is evidence, not the message. */
export const describeFailure = (error: TtrpcError, peer: string): { message: string; evidence: string[] } =>
  error.call === undefined
    ? { message: error.message, evidence: [] }
    : { message: `${peer}: ${error.message}`, evidence: [`call: ${error.call}`] };
