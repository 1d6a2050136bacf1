import { KataError } from '../base/index.ts';
import type { NetDevice } from '../model/index.ts';
import { type Attachment, cardOf, compareNetworks, guestNetwork, isNamedOnly, nameRules } from '../network/index.ts';
import { failpoint } from './failpoints.ts';
import type { Phases } from './phases.ts';
import type { Sandbox } from './sandbox.ts';

const APPLY_TIMEOUT_MS = 30_000;

/** What a launch needs to know of the network that its sandbox's record names. */
export interface CardOptions {
  /** Of the packet filter. */
  table: string;
  namesFile: string;
  dnsServers: readonly string[];
  vhost: boolean;
  /** Sets the packet filter's rules for the attachment that is recorded now. */
  setFilter(attachment: Attachment): Promise<void>;
}

/** A card on its way to the guest. */
export interface Card {
  device: NetDevice;
  /** Settles when what the guest sends is filtered; the machine may boot before. */
  filtered: Promise<void>;
}

/** Makes the card of a sandbox whose keeper runs and whose record has its attachment. */
export async function openCard(
  sandbox: Sandbox,
  options: CardOptions,
  { phases, signal }: { phases: Phases; signal: AbortSignal },
): Promise<Card | undefined> {
  const { network } = sandbox.record;
  if (network === undefined) return undefined;
  const { tap, mac, mtu, addresses, ports } = network;
  const answer = await phases.time('network', () =>
    sandbox.links.keeper.openCard(
      {
        ...{ tap, mac, mtu, addresses, ports, table: options.table, namesFile: options.namesFile },
        dnsServers: options.dnsServers,
        names: nameRules(network),
        namedOnly: network.internal || isNamedOnly(network),
      },
      { signal },
    ),
  );
  failpoint('start.card-opened');
  const attachment = { ...network, ...answer };
  sandbox.update({ network: attachment });
  const filtered = phases.time('filter', () => options.setFilter(attachment));
  filtered.catch(() => {});
  return { device: cardOf(attachment, options.vhost), filtered };
}

/** Gives the booted guest its addresses. Nothing of a container runs yet. */
export async function configureCard(sandbox: Sandbox, card: Card, phases: Phases): Promise<void> {
  const { network } = sandbox.record;
  if (network === undefined) return;
  await card.filtered;
  failpoint('start.filter-set');
  const wanted = guestNetwork(network);
  const got = await phases.time('configure-network', () =>
    sandbox.links.agent.applyNetwork(wanted, { timeoutMs: APPLY_TIMEOUT_MS }),
  );
  const missing = compareNetworks(wanted, got);
  if (missing.length > 0)
    throw new KataError('AGENT_ERROR', `the guest does not have its network: ${missing[0]}`, {
      phase: 'network',
      evidence: missing,
    });
}
