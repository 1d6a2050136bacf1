export type { ApiAnswer, ApiArguments, CallOptions } from './client.ts';
export { ApiClient } from './client.ts';
export { ENDPOINTS, type EndpointName, REQUEST_ID_HEADER } from './endpoints.ts';
export * from './frames.ts';
export type * from './schemas.ts';
