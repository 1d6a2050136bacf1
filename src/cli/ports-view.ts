import type { ContainerNetwork } from '../api/index.ts';

type Port = ContainerNetwork['ports'][number];

const bracketed = (address: string): string => (address.includes(':') ? `[${address}]` : address);

/** Where the host listens for a port: two places when it is every address, as docker says it. */
export const hostPlaces = ({ hostAddress, hostPort }: Port): { HostIp: string; HostPort: string }[] =>
  (hostAddress === '' ? ['0.0.0.0', '::'] : [hostAddress]).map((HostIp) => ({ HostIp, HostPort: String(hostPort) }));

/** docker ps's column: "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp, 443/tcp". */
export function portsColumn(ports: readonly Port[], exposed: readonly string[]): string {
  const open = ports.flatMap((port) =>
    hostPlaces(port).map(({ HostIp, HostPort }) => `${bracketed(HostIp)}:${HostPort}->${port.port}/${port.protocol}`),
  );
  const closed = exposed.filter((text) => !ports.some(({ port, protocol }) => text === `${port}/${protocol}`));
  return [...open, ...closed].join(', ');
}

export const placeText = ({ HostIp, HostPort }: { HostIp: string; HostPort: string }): string =>
  `${bracketed(HostIp)}:${HostPort}`;
