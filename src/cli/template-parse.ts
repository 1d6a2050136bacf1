import { KataError } from '../base/index.ts';

/** Syntax tree of the part of Go's text/template that docker's `--format` users write (https://pkg.go.dev/text/template). */
export type Node =
  | { kind: 'text'; text: string }
  | { kind: 'action'; pipe: Pipe }
  | { kind: 'if' | 'with'; pipe: Pipe; body: Node[]; otherwise: Node[] }
  | { kind: 'range'; pipe: Pipe; body: Node[]; otherwise: Node[] }
  | { kind: 'break' | 'continue' };

/** `$a, $b := x | f`. */
export interface Pipe {
  declares: string[];
  /** True for `$x = …`, which sets an existing variable. */
  assigns: boolean;
  /** Each is an operand and its arguments. */
  commands: Operand[][];
}

export type Operand =
  | { kind: 'literal'; value: string | number | boolean | null }
  | { kind: 'function'; name: string }
  | { kind: 'chain'; base: 'dot' | { variable: string } | { pipe: Pipe }; fields: string[] };

type Token = { type: 'word' | 'field' | 'variable' | 'string' | 'number' | 'symbol'; text: string; spaced: boolean };

const MAX_LENGTH = 64 * 1024;
const MAX_DEPTH = 64;
const SCANNER =
  /(\s+)|("(?:[^"\\\n]|\\.)*")|(`[^`]*`)|([+-]?(?:0x[0-9a-fA-F]+|\d+(?:\.\d+)?(?:e[+-]?\d+)?))|(\$[\p{L}\p{N}_]*)|(\.[\p{L}_][\p{L}\p{N}_]*)|([\p{L}_][\p{L}\p{N}_]*)|(:=|[|().,=])/uy;

/** Parses a template. Throws INVALID_ARGUMENT "template parsing error: …". */
export function parseTemplate(source: string): Node[] {
  if (source.length > MAX_LENGTH) throw bad(`the template is over ${MAX_LENGTH} characters`);
  const parser = new Parser(split(source));
  return parser.document();
}

export const bad = (message: string): KataError =>
  new KataError('INVALID_ARGUMENT', `template parsing error: ${message}`);

type Piece = { text: string } | { action: Token[] };

/** Cuts a template into text and actions, and applies the trim markers `{{- ` and ` -}}`. */
function split(source: string): Piece[] {
  const pieces: Piece[] = [];
  let at = 0;
  let trimNext = false;
  while (at <= source.length) {
    const open = source.indexOf('{{', at);
    let text = source.slice(at, open < 0 ? source.length : open);
    if (trimNext) text = text.trimStart();
    const trimBefore = open >= 0 && /^\{\{-\s/.test(source.slice(open, open + 4));
    if (trimBefore) text = text.trimEnd();
    if (text !== '') pieces.push({ text });
    if (open < 0) break;
    const start = open + (trimBefore ? 3 : 2);
    const comment = /^\s*\/\*[\s\S]*?\*\/(\s+-)?\s*\}\}/.exec(source.slice(start));
    const { tokens, end, trimAfter } =
      comment === null
        ? scan(source, start)
        : { tokens: [], end: start + comment[0].length, trimAfter: comment[1] !== undefined };
    trimNext = trimAfter;
    at = end;
    if (comment === null) pieces.push({ action: tokens });
  }
  return pieces;
}

function scan(source: string, start: number): { tokens: Token[]; end: number; trimAfter: boolean } {
  const tokens: Token[] = [];
  let at = start;
  let spaced = true;
  for (;;) {
    if (source.startsWith('}}', at)) return { tokens, end: at + 2, trimAfter: false };
    if (spaced && source.startsWith('-}}', at) && at > start) return { tokens, end: at + 3, trimAfter: true };
    SCANNER.lastIndex = at;
    const match = SCANNER.exec(source);
    if (match === null)
      throw bad(at >= source.length ? 'unclosed action' : `unexpected ${JSON.stringify(source[at])} in an action`);
    at = SCANNER.lastIndex;
    const [, space, quoted, raw, number, variable, field, word, symbol] = match;
    if (space !== undefined) {
      spaced = true;
      continue;
    }
    if (quoted !== undefined) tokens.push({ type: 'string', text: unquote(quoted), spaced });
    else if (raw !== undefined) tokens.push({ type: 'string', text: raw.slice(1, -1), spaced });
    else if (number !== undefined) tokens.push({ type: 'number', text: number, spaced });
    else if (variable !== undefined) tokens.push({ type: 'variable', text: variable, spaced });
    else if (field !== undefined) tokens.push({ type: 'field', text: field.slice(1), spaced });
    else if (word !== undefined) tokens.push({ type: 'word', text: word, spaced });
    else tokens.push({ type: 'symbol', text: symbol ?? '', spaced });
    spaced = false;
  }
}

const ESCAPES: Record<string, string> = {
  n: '\n',
  t: '\t',
  r: '\r',
  '\\': '\\',
  '"': '"',
  "'": "'",
  a: '\x07',
  b: '\b',
};

function unquote(quoted: string): string {
  return quoted.slice(1, -1).replace(/\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.)/g, (_, code: string) => {
    if (code.length > 1) return String.fromCharCode(Number.parseInt(code.slice(1), 16));
    const character = Object.hasOwn(ESCAPES, code) ? ESCAPES[code] : undefined;
    if (character === undefined) throw bad(`unknown escape \\${code}`);
    return character;
  });
}

type Stop = { word: 'end' } | { word: 'else'; chained: Node | undefined };

class Parser {
  readonly #pieces: Piece[];
  #next = 0;
  #depth = 0;

  constructor(pieces: Piece[]) {
    this.#pieces = pieces;
  }

  document(): Node[] {
    const { nodes, stop } = this.#block(false);
    if (stop !== undefined) throw bad(`unexpected {{${stop.word}}}`);
    return nodes;
  }

  /** Nodes up to {{end}}, {{else}} or the end of the template. */
  #block(inLoop: boolean): { nodes: Node[]; stop: Stop | undefined } {
    const nodes: Node[] = [];
    for (let piece = this.#pieces[this.#next++]; piece !== undefined; piece = this.#pieces[this.#next++]) {
      if ('text' in piece) {
        nodes.push({ kind: 'text', text: piece.text });
        continue;
      }
      const tokens = new Tokens(piece.action);
      const word = tokens.keyword();
      if (word === 'end') {
        tokens.finish();
        return { nodes, stop: { word } };
      }
      if (word === 'else') {
        const chained = tokens.atEnd ? undefined : this.#chainedElse(tokens, inLoop);
        return { nodes, stop: { word, chained } };
      }
      nodes.push(this.#node(word, tokens, inLoop));
    }
    return { nodes, stop: undefined };
  }

  #node(word: string | undefined, tokens: Tokens, inLoop: boolean): Node {
    if (word === 'if' || word === 'with' || word === 'range') return this.#control(word, tokens, inLoop);
    if (word === 'break' || word === 'continue') {
      if (!inLoop) throw bad(`{{${word}}} outside {{range}}`);
      tokens.finish();
      return { kind: word };
    }
    if (word !== undefined) throw bad(`{{${word}}} is not supported`);
    const pipe = tokens.pipe();
    tokens.finish();
    return { kind: 'action', pipe };
  }

  #control(kind: 'if' | 'with' | 'range', tokens: Tokens, inLoop: boolean): Node {
    if (++this.#depth > MAX_DEPTH) throw bad('nested too deeply');
    const pipe = tokens.pipe();
    tokens.finish();
    if (pipe.declares.length > 1 && kind !== 'range') throw bad(`too many variables in {{${kind}}}`);
    const { nodes: body, stop } = this.#block(inLoop || kind === 'range');
    let otherwise: Node[] = [];
    if (stop === undefined) throw bad('unexpected end of the template: {{end}} is missing');
    if (stop.word === 'else') {
      if (stop.chained !== undefined) otherwise = [stop.chained];
      else {
        const rest = this.#block(inLoop);
        if (rest.stop?.word !== 'end') throw bad('{{else}} without {{end}}');
        otherwise = rest.nodes;
      }
    }
    this.#depth--;
    return { kind, pipe, body, otherwise };
  }

  /** `{{else if x}}`: a nested control that shares the {{end}}. */
  #chainedElse(tokens: Tokens, inLoop: boolean): Node {
    const word = tokens.keyword();
    if (word !== 'if' && word !== 'with') throw bad('unexpected words after {{else');
    return this.#control(word, tokens, inLoop);
  }
}

const KEYWORDS = ['if', 'else', 'end', 'range', 'with', 'break', 'continue', 'define', 'template', 'block'];

class Tokens {
  readonly #tokens: Token[];
  #at = 0;
  #depth = 0;

  constructor(tokens: Token[]) {
    this.#tokens = tokens;
  }

  get atEnd(): boolean {
    return this.#at >= this.#tokens.length;
  }

  keyword(): string | undefined {
    const token = this.#tokens[this.#at];
    if (token?.type !== 'word' || !KEYWORDS.includes(token.text)) return undefined;
    this.#at++;
    return token.text;
  }

  finish(): void {
    const token = this.#tokens[this.#at];
    if (token !== undefined) throw bad(`unexpected ${JSON.stringify(token.text)}`);
  }

  pipe(): Pipe {
    const { declares, assigns } = this.#declaration();
    const commands = [this.#command()];
    while (this.#symbol('|')) commands.push(this.#command());
    for (const [first] of commands.slice(1))
      if (first?.kind === 'literal') throw bad('a value cannot follow "|": only a function or method can');
    return { declares, assigns, commands };
  }

  #declaration(): { declares: string[]; assigns: boolean } {
    const start = this.#at;
    const declares: string[] = [];
    for (;;) {
      const token = this.#tokens[this.#at];
      if (token?.type !== 'variable') break;
      this.#at++;
      declares.push(token.text);
      if (this.#symbol(',')) continue;
      if (this.#symbol(':=')) return { declares, assigns: false };
      if (this.#symbol('=')) return { declares, assigns: true };
      break;
    }
    this.#at = start;
    return { declares: [], assigns: false };
  }

  #command(): Operand[] {
    const operands: Operand[] = [];
    for (let operand = this.#operand(); operand !== undefined; operand = this.#operand()) operands.push(operand);
    if (operands.length === 0) throw bad('a value is missing');
    return operands;
  }

  #operand(): Operand | undefined {
    const token = this.#tokens[this.#at];
    if (token === undefined) return undefined;
    if (token.type === 'symbol') {
      if (token.text === '(') return this.#parenthesized();
      if (token.text !== '.') return undefined;
      this.#at++;
      return { kind: 'chain', base: 'dot', fields: [] };
    }
    if (token.type === 'field') return { kind: 'chain', base: 'dot', fields: this.#fields(true) };
    this.#at++;
    if (token.type === 'variable')
      return { kind: 'chain', base: { variable: token.text }, fields: this.#fields(false) };
    if (token.type === 'string') return { kind: 'literal', value: token.text };
    if (token.type === 'number') return { kind: 'literal', value: Number(token.text) };
    if (token.text === 'true' || token.text === 'false') return { kind: 'literal', value: token.text === 'true' };
    if (token.text === 'nil') return { kind: 'literal', value: null };
    return { kind: 'function', name: token.text };
  }

  #parenthesized(): Operand {
    if (++this.#depth > MAX_DEPTH) throw bad('nested too deeply');
    this.#at++;
    const pipe = this.pipe();
    if (!this.#symbol(')')) throw bad('")" is missing');
    this.#depth--;
    return { kind: 'chain', base: { pipe }, fields: this.#fields(false) };
  }

  /** `.A.B` written without spaces; the first may follow a space. */
  #fields(firstMayBeSpaced: boolean): string[] {
    const fields: string[] = [];
    for (;;) {
      const token = this.#tokens[this.#at];
      const joined = token?.spaced === false || (firstMayBeSpaced && fields.length === 0);
      if (token?.type !== 'field' || !joined) return fields;
      this.#at++;
      fields.push(token.text);
    }
  }

  #symbol(text: string): boolean {
    const token = this.#tokens[this.#at];
    if (token?.type !== 'symbol' || token.text !== text) return false;
    this.#at++;
    return true;
  }
}
