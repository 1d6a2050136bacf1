import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

export interface CodeBlock {
  file: string;
  line: number;
  /** First word after the fence: "sh", "ts", "json", "text". */
  language: string;
  code: string;
}

/** Every fenced block of README.md and docs/. A fence without a language has the language "". */
export function codeBlocks(repo: string): CodeBlock[] {
  const files = ['README.md', ...readdirSync(join(repo, 'docs'), { recursive: true }).map((name) => `docs/${name}`)];
  return files
    .filter((file) => file.endsWith('.md'))
    .flatMap((file) => blocksOf(file, readFileSync(join(repo, file), 'utf8')));
}

export function blocksOf(file: string, markdown: string): CodeBlock[] {
  const blocks: CodeBlock[] = [];
  let open: CodeBlock | undefined;
  for (const [index, line] of markdown.split('\n').entries()) {
    const fence = /^```(.*)$/.exec(line);
    if (open === undefined && fence !== null)
      open = { file, line: index + 1, language: (fence[1] ?? '').trim(), code: '' };
    else if (open !== undefined && fence !== null) {
      blocks.push(open);
      open = undefined;
    } else if (open !== undefined) open.code += `${line}\n`;
  }
  if (open !== undefined) throw new Error(`${file}:${open.line}: the code block is never closed`);
  return blocks;
}
