import { writeFileSync } from 'node:fs';
import * as z from 'zod';
import { ERROR_CODES } from '../base/index.ts';
import { ENDPOINTS, type EndpointName, REQUEST_ID_HEADER } from './endpoints.ts';
import { ROUTES, type Route } from './routes.ts';

/**
 * The OpenAPI 3.1 document of the API, made from the tables that the server and the client use.
 * `node src/api/openapi.ts docs/openapi.json` writes it; a test holds the file to it.
 */
type Json = Record<string, unknown>;

const schemaOf = (schema: z.ZodType, io: 'input' | 'output'): Json => {
  const { $schema: _, ...rest } = z.toJSONSchema(schema, { io, unrepresentable: 'any', target: 'draft-2020-12' });
  return rest;
};

const ERROR: Json = {
  type: 'object',
  required: ['code', 'message'],
  properties: {
    code: { type: 'string', enum: Object.keys(ERROR_CODES) },
    message: { type: 'string' },
    phase: { type: 'string', description: 'The step that failed' },
    evidence: { type: 'array', items: { type: 'string' } },
    hint: { type: 'string', description: 'What to do next' },
  },
};

function parametersOf(path: string, route: Route): Json[] {
  const inPath = [...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => ({
    name,
    in: 'path',
    required: true,
    schema: { type: 'string' },
  }));
  const properties = route.query === undefined ? {} : ((schemaOf(route.query, 'output').properties ?? {}) as Json);
  const inQuery = Object.entries(properties).map(([name, schema]) =>
    (schema as Json).type === 'object'
      ? { name, in: 'query', required: false, content: { 'application/json': { schema } } }
      : { name, in: 'query', required: false, schema },
  );
  const requestId = {
    name: REQUEST_ID_HEADER,
    in: 'header',
    required: false,
    description: 'A replay with the same value gets the first answer',
    schema: { type: 'string', minLength: 1, maxLength: 128 },
  };
  return [...inPath, ...inQuery, ...(route.replay === true ? [requestId] : [])];
}

function operationOf(name: string, path: string, route: Route): Json {
  const type = route.stream === true ? 'application/x-ndjson' : 'application/json';
  return {
    operationId: name,
    summary: route.summary,
    parameters: parametersOf(path, route),
    ...(route.body === undefined
      ? {}
      : { requestBody: { content: { 'application/json': { schema: schemaOf(route.body, 'input') } } } }),
    responses: {
      200: { description: 'Done', content: { [type]: { schema: schemaOf(route.answer, 'output') } } },
      default: {
        description: 'Refused or failed',
        content: { 'application/json': { schema: { $ref: '#/components/schemas/Error' } } },
      },
    },
  };
}

export function openApiDocument(): Json {
  const paths: Record<string, Json> = {};
  for (const [name, [method, path]] of Object.entries(ENDPOINTS)) {
    const item = paths[path] ?? {};
    item[method.toLowerCase()] = operationOf(name, path, ROUTES[name as EndpointName]);
    paths[path] = item;
  }
  return {
    openapi: '3.1.0',
    info: { title: 'katad', version: '1', description: 'HTTP over the unix socket katad.sock of the run directory.' },
    servers: [{ url: 'http://katad' }],
    paths,
    components: { schemas: { Error: ERROR } },
  };
}

export const openApiText = (): string => `${JSON.stringify(openApiDocument(), null, 1)}\n`;

if (import.meta.main && process.argv[2] !== undefined) writeFileSync(process.argv[2], openApiText());
