import ts from 'typescript';

/**
 * Error codes that a test file asserts: those in a string or a pattern within a test that holds an assertion. What a fake throws
 * (`new KataError('…')`) is not asserted by that, and neither is what a comment says.
 */
export function assertedCodes(file: string, source: string, codes: readonly string[]): Set<string> {
  const tree = ts.createSourceFile(file, source, ts.ScriptTarget.ESNext, true);
  const found = new Set<string>();
  const nameOf = (call: ts.CallExpression): string => call.expression.getText(tree);
  const holdsAssertion = (node: ts.Node): boolean =>
    (ts.isCallExpression(node) && /^assert\b/.test(nameOf(node))) ||
    ts.forEachChild(node, (child) => holdsAssertion(child) || undefined) === true;
  const collect = (node: ts.Node): void => {
    if (ts.isNewExpression(node)) return;
    if (ts.isStringLiteralLike(node) || ts.isRegularExpressionLiteral(node))
      for (const code of codes) if (new RegExp(`(?<![A-Z_])${code}(?![A-Z_])`).test(node.text)) found.add(code);
    ts.forEachChild(node, collect);
  };
  const visit = (node: ts.Node): void => {
    if (ts.isCallExpression(node) && /^(\w+\.)?test$/.test(nameOf(node)) && holdsAssertion(node)) collect(node);
    else ts.forEachChild(node, visit);
  };
  visit(tree);
  return found;
}
