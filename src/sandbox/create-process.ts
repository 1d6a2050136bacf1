import { translateAgentError } from '../agent/index.ts';
import type { Keeper } from './services.ts';

/** Has the keeper create a process. The agent's refusals become errors that name `phase`. */
export async function createProcess(
  keeper: Keeper,
  phase: string,
  options: { signal: AbortSignal; timeoutMs: number },
  request: Parameters<Keeper['createProcess']>[0],
): Promise<void> {
  try {
    await keeper.createProcess(request, options);
  } catch (error) {
    throw translateAgentError(error, phase);
  }
}
