/**
 * Does `work` for every item, `atOnce` of them side by side, and answers the results in the items' order. After the first
 * failure nothing more is begun and `failed` is called; it is thrown when what was begun has ended.
 */
export async function inParallel<T, R>(
  items: readonly T[],
  atOnce: number,
  work: (item: T) => Promise<R>,
  failed: () => void = () => {},
): Promise<R[]> {
  const results: R[] = [];
  const waiting = items.entries();
  let failure: { error: unknown } | undefined;
  const worker = async (): Promise<void> => {
    for (const [index, item] of waiting) {
      if (failure !== undefined) return;
      try {
        results[index] = await work(item);
      } catch (error) {
        if (failure === undefined) failed();
        failure ??= { error };
      }
    }
  };
  await Promise.all(Array.from({ length: Math.min(atOnce, items.length) }, worker));
  if (failure !== undefined) throw failure.error;
  return results;
}
