import type { Command } from './command.ts';

/** A command that is loaded when it is asked for: `kata version` reads none of the others. */
interface Entry {
  name: string;
  summary: string;
  section: Section;
  load(): Promise<{ command: Command }>;
}

type Section = 'Containers' | 'Images and volumes' | 'Networks' | 'Installation';

const containers = (name: string, summary: string, load: Entry['load']): Entry => ({
  name,
  summary,
  section: 'Containers',
  load,
});

export const ENTRIES: readonly Entry[] = [
  containers('run', 'Create and start a container in a virtual machine of its own', () => import('./commands/run.ts')),
  containers('create', 'Create a container', () => import('./commands/create.ts')),
  containers('start', 'Start containers', () => import('./commands/start.ts')),
  containers('exec', 'Run a command in a running container', () => import('./commands/exec.ts')),
  containers('attach', 'Attach to a running container', () => import('./commands/attach.ts')),
  containers('ps', 'List containers', () => import('./commands/ps.ts')),
  containers('logs', 'Show the output of a container', () => import('./commands/logs.ts')),
  containers('console', "Show the console of a container's virtual machine", () => import('./commands/console.ts')),
  containers('cp', 'Copy files between a container and this host', () => import('./commands/cp.ts')),
  containers('diff', "Show what a container changed in its image's files", () => import('./commands/diff.ts')),
  containers('export', "Write a container's root file system as a tar archive", () => import('./commands/export.ts')),
  containers('commit', 'Make an image of a container', () => import('./commands/commit.ts')),
  containers('top', 'Show the processes of a container', () => import('./commands/top.ts')),
  containers('debug', "Open a shell in a container's virtual machine", () => import('./commands/debug.ts')),
  containers('container', 'Remove all containers that do not run', () => import('./commands/container.ts')),
  containers('stop', 'Stop containers', () => import('./commands/stop.ts')),
  containers('kill', 'Send a signal to containers', () => import('./commands/kill.ts')),
  containers('restart', 'Restart containers', () => import('./commands/restart.ts')),
  containers('rm', 'Remove containers', () => import('./commands/rm.ts')),
  containers('wait', 'Wait for containers to stop and print their exit codes', () => import('./commands/wait.ts')),
  containers(
    'inspect',
    'Show everything about containers, images, volumes and networks',
    () => import('./commands/inspect.ts'),
  ),
  containers('port', 'Show published ports', () => import('./commands/port.ts')),
  containers('events', 'Follow what happens', () => import('./commands/events.ts')),
  containers('stats', 'Show resource use', () => import('./commands/stats.ts')),
  containers('dashboard', 'Show all of it on a page in a browser', () => import('./commands/dashboard.ts')),
  containers('update', 'Change limits of containers', () => import('./commands/update.ts')),
  containers('rename', 'Rename a container', () => import('./commands/rename.ts')),
  containers('pause', 'Freeze the processes of containers', () => import('./commands/pause.ts')),
  containers('unpause', 'Thaw the processes of containers', () => import('./commands/unpause.ts')),
  ...imageEntries(),
  { name: 'network', summary: 'Manage networks', section: 'Networks', load: () => import('./commands/network.ts') },
  ...installationEntries(),
];

function imageEntries(): Entry[] {
  const section = 'Images and volumes';
  return [
    { name: 'images', summary: 'List images', section, load: () => import('./commands/images.ts') },
    { name: 'pull', summary: 'Fetch an image from a registry', section, load: () => import('./commands/pull.ts') },
    { name: 'push', summary: 'Give an image to a registry', section, load: () => import('./commands/push.ts') },
    { name: 'login', summary: 'Keep a login for a registry', section, load: () => import('./commands/login.ts') },
    { name: 'logout', summary: 'Forget the login for a registry', section, load: () => import('./commands/logout.ts') },
    { name: 'tag', summary: 'Give an image one more name', section, load: () => import('./commands/tag.ts') },
    { name: 'build', summary: 'Say how images are built', section, load: () => import('./commands/build.ts') },
    { name: 'load', summary: 'Load images from an archive', section, load: () => import('./commands/load.ts') },
    { name: 'save', summary: 'Save images to an archive', section, load: () => import('./commands/save.ts') },
    { name: 'rmi', summary: 'Remove images', section, load: () => import('./commands/rmi.ts') },
    { name: 'image', summary: 'Manage images', section, load: () => import('./commands/image.ts') },
    { name: 'volume', summary: 'Manage volumes', section, load: () => import('./commands/volume.ts') },
    { name: 'system', summary: 'Show and tidy the whole of it', section, load: () => import('./commands/system.ts') },
    { name: 'info', summary: 'Show the engine and what it has', section, load: () => import('./commands/info.ts') },
  ];
}

function installationEntries(): Entry[] {
  const section = 'Installation';
  return [
    { name: 'check', summary: 'Check what this host offers', section, load: () => import('./commands/check.ts') },
    { name: 'setup', summary: 'Build and fetch what is needed', section, load: () => import('./commands/setup.ts') },
    {
      name: 'install',
      summary: 'Make containerd use virtual machines, or systemd start the engine',
      section,
      load: () => import('./commands/install.ts'),
    },
    {
      name: 'uninstall',
      summary: 'Undo an installation',
      section,
      load: () => import('./commands/uninstall.ts'),
    },
    {
      name: 'config',
      summary: 'Show what configuration.toml makes of a pod',
      section,
      load: () => import('./commands/config.ts'),
    },
    { name: 'guest', summary: 'Manage guest images', section, load: () => import('./commands/guest.ts') },
    {
      name: 'support-bundle',
      summary: 'Collect what a report of a problem needs',
      section,
      load: () => import('./commands/support-bundle.ts'),
    },
    { name: 'engine', summary: 'Replace the engine', section, load: () => import('./commands/engine.ts') },
    {
      name: 'explain',
      summary: 'Say what error codes mean and what to do',
      section,
      load: () => import('./commands/explain.ts'),
    },
    { name: 'version', summary: 'Show versions', section, load: () => import('./commands/version.ts') },
    {
      name: 'completion',
      summary: 'Print a completion script for a shell',
      section,
      load: async () => {
        const { completionCommand } = await import('./commands/completion.ts');
        return { command: completionCommand(loadAll) };
      },
    },
    {
      name: 'man',
      summary: 'Write the manual pages',
      section,
      load: async () => {
        const { manCommand } = await import('./commands/man.ts');
        return { command: manCommand(loadSections) };
      },
    },
  ];
}

/** `kata container VERB` is `kata VERB`; these verbs have another name there. */
const CONTAINER_ALIASES: Record<string, string> = { ls: 'ps', list: 'ps' };

/** The command that argv's first words name, and the words after them. */
export async function findCommand(argv: readonly string[]): Promise<{ command: Command; rest: string[] } | undefined> {
  const [first = '', second = ''] = argv;
  const verb = Object.hasOwn(CONTAINER_ALIASES, second) ? CONTAINER_ALIASES[second] : second;
  const grouped = first === 'container' && ENTRIES.some((e) => e.name === verb && e.section === 'Containers');
  const entry = ENTRIES.find(({ name }) => name === (grouped ? verb : first));
  if (entry === undefined) return undefined;
  let { command } = await entry.load();
  let rest = argv.slice(grouped ? 2 : 1);
  for (let sub = subcommand(command, rest); sub !== undefined; sub = subcommand(command, rest)) {
    command = sub;
    rest = rest.slice(1);
  }
  return { command, rest };
}

const subcommand = (command: Command, rest: readonly string[]): Command | undefined =>
  command.subcommands?.find((sub) => sub.name.split(' ').at(-1) === rest[0]);

/** Every command: for completion and the check of the documentation. */
export async function loadAll(): Promise<Command[]> {
  return (await Promise.all(ENTRIES.map((entry) => entry.load()))).map(({ command }) => command);
}

/** As `kata --help` groups them: for the manual. */
export function loadSections(): Promise<{ title: string; commands: Command[] }[]> {
  const sections = [...new Set(ENTRIES.map(({ section }) => section))];
  const load = async (title: Section) => {
    const entries = ENTRIES.filter(({ section }) => section === title);
    return { title, commands: (await Promise.all(entries.map((entry) => entry.load()))).map(({ command }) => command) };
  };
  return Promise.all(sections.map(load));
}
