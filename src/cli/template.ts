import {
  FUNCTIONS,
  formatValue,
  isMap,
  isStruct,
  type TemplateFunction,
  truth,
  type Value,
} from './template-functions.ts';
import { bad, type Node, type Operand, type Pipe, parseTemplate } from './template-parse.ts';

export { toJson, type Value } from './template-functions.ts';

/** A parsed template; `execute` may be called any number of times. */
export interface Template {
  /** The text for `data`. Throws INVALID_ARGUMENT naming the field or function that failed. */
  execute(data: Value, functions?: ReadonlyMap<string, TemplateFunction>): string;
}

export function compileTemplate(source: string): Template {
  const nodes = parseTemplate(source);
  return {
    execute: (data, functions = FUNCTIONS) => {
      const evaluator = new Evaluator(functions);
      evaluator.define('$', data);
      evaluator.nodes(nodes, data);
      return evaluator.text;
    },
  };
}

type Flow = 'break' | 'continue' | undefined;
/** Bounds `{{range 1000000000}}` and what grows in loops. */
const MAX_OUTPUT = 256 * 2 ** 20;
const MAX_STEPS = 5_000_000;

class Evaluator {
  text = '';
  readonly #functions: ReadonlyMap<string, TemplateFunction>;
  readonly #variables: { name: string; value: Value }[] = [];
  #steps = 0;

  constructor(functions: ReadonlyMap<string, TemplateFunction>) {
    this.#functions = functions;
  }

  define(name: string, value: Value): void {
    this.#variables.push({ name, value });
  }

  nodes(nodes: readonly Node[], dot: Value): Flow {
    if (++this.#steps > MAX_STEPS) throw bad('the template runs too long');
    const scope = this.#variables.length;
    let flow: Flow;
    for (const node of nodes) {
      flow = this.#node(node, dot);
      if (flow !== undefined) break;
    }
    this.#variables.length = scope;
    return flow;
  }

  #node(node: Node, dot: Value): Flow {
    this.#steps++;
    switch (node.kind) {
      case 'text':
        this.#write(node.text);
        return undefined;
      case 'action': {
        const value = this.#pipe(node.pipe, dot);
        if (node.pipe.declares.length === 0) this.#write(value === undefined ? '<no value>' : formatValue(value));
        return undefined;
      }
      case 'if':
      case 'with':
        return this.#scoped(() => {
          const value = this.#pipe(node.pipe, dot);
          const inner = node.kind === 'with' && truth(value) ? value : dot;
          return this.nodes(truth(value) ? node.body : node.otherwise, inner);
        });
      case 'range':
        return this.#scoped(() => this.#range(node, dot));
      default:
        return node.kind;
    }
  }

  #write(text: string): void {
    this.text += text;
    if (this.text.length > MAX_OUTPUT) throw bad('the output is too long');
  }

  #scoped(work: () => Flow): Flow {
    const scope = this.#variables.length;
    const flow = work();
    this.#variables.length = scope;
    return flow;
  }

  #range(node: Node & { kind: 'range' }, dot: Value): Flow {
    const { declares, assigns } = node.pipe;
    if (declares.length > 2) throw bad('too many variables in {{range}}');
    const value = this.#commands(node.pipe, dot);
    let any = false;
    for (const [key, element] of elements(value)) {
      any = true;
      const scope = this.#variables.length;
      const values = declares.length === 2 ? [key, element] : [element];
      for (const [at, name] of declares.entries()) this.#bind(name, values[at], assigns);
      const flow = this.nodes(node.body, element);
      this.#variables.length = scope;
      if (flow === 'break') break;
    }
    return any ? undefined : this.nodes(node.otherwise, dot);
  }

  #pipe(pipe: Pipe, dot: Value): Value {
    const value = this.#commands(pipe, dot);
    for (const name of pipe.declares) this.#bind(name, value, pipe.assigns);
    return value;
  }

  #bind(name: string, value: Value, assigns: boolean): void {
    if (!assigns) {
      this.define(name, value);
      return;
    }
    const variable = this.#variables.findLast((v) => v.name === name);
    if (variable === undefined) throw bad(`undefined variable ${name}`);
    variable.value = value;
  }

  #commands(pipe: Pipe, dot: Value): Value {
    let value: Value;
    for (const [at, command] of pipe.commands.entries()) value = this.#command(command, dot, at === 0 ? [] : [value]);
    return value;
  }

  /** `piped` is the result of the command before, which becomes the last argument. */
  #command(command: Operand[], dot: Value, piped: Value[]): Value {
    const [first, ...rest] = command;
    if (first === undefined) throw bad('empty command');
    if (first.kind === 'function') return this.#call(first.name, rest, dot, piped);
    if (first.kind === 'literal') {
      if (rest.length + piped.length > 0) throw bad(`can't give argument to non-function ${formatValue(first.value)}`);
      return first.value;
    }
    const args = () => [...rest.map((operand) => this.#operand(operand, dot)), ...piped];
    return this.#chain(first, dot, rest.length + piped.length === 0 ? undefined : args);
  }

  #call(name: string, operands: Operand[], dot: Value, piped: Value[]): Value {
    if (name === 'and' || name === 'or') {
      let value: Value;
      const thunks = [...operands.map((operand) => () => this.#operand(operand, dot)), ...piped.map((p) => () => p)];
      if (thunks.length === 0) throw bad(`wrong number of arguments for ${name}: want at least 1, got 0`);
      for (const thunk of thunks) {
        value = thunk();
        if (truth(value) === (name === 'or')) return value;
      }
      return value;
    }
    const work = this.#functions.get(name);
    if (work === undefined) throw bad(`function "${name}" not defined`);
    return work(...operands.map((operand) => this.#operand(operand, dot)), ...piped);
  }

  #operand(operand: Operand, dot: Value): Value {
    if (operand.kind === 'literal') return operand.value;
    if (operand.kind === 'function') return this.#call(operand.name, [], dot, []);
    return this.#chain(operand, dot, undefined);
  }

  #chain(operand: Operand & { kind: 'chain' }, dot: Value, args: (() => Value[]) | undefined): Value {
    let value: Value;
    if (operand.base === 'dot') value = dot;
    else if ('pipe' in operand.base) value = this.#pipe(operand.base.pipe, dot);
    else value = this.#variable(operand.base.variable);
    for (const [at, field] of operand.fields.entries()) {
      value = fieldOf(value, field);
      const last = at === operand.fields.length - 1;
      if (typeof value === 'function') {
        value = value(...(last && args !== undefined ? args() : []));
        if (last) return value;
      }
    }
    if (args !== undefined) throw bad(`.${operand.fields.join('.')} is not a method but has arguments`);
    return value;
  }

  #variable(name: string): Value {
    const variable = this.#variables.findLast((v) => v.name === name);
    if (variable === undefined) throw bad(`undefined variable ${name}`);
    return variable.value;
  }
}

function fieldOf(value: Value, field: string): Value {
  if (value === undefined || value === null) throw bad(`nil value has no field ${field}`);
  if (isMap(value)) return value.get(field);
  if (isStruct(value) && Object.hasOwn(value, field)) return value[field];
  throw bad(`can't evaluate field ${field}`);
}

function* elements(value: Value): Generator<[Value, Value]> {
  if (value === undefined || value === null) return;
  if (typeof value === 'number') {
    for (let at = 0; at < value; at++) yield [at, at];
    return;
  }
  if (Array.isArray(value)) {
    yield* value.entries();
    return;
  }
  if (!isMap(value)) throw bad(`range can't iterate over ${formatValue(value)}`);
  const keys = [...value.keys()].sort();
  for (const key of keys) yield [key, value.get(key)];
}
