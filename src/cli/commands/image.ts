import { type Command, FLAG_FORMAT, FLAG_JSON } from '../command.ts';
import { group } from '../group.ts';
import { REFUSED_PLATFORM } from '../refused.ts';
import { command as prune } from './image-prune.ts';
import { command as images } from './images.ts';
import { inspectObjects } from './inspect.ts';
import { command as load } from './load.ts';
import { command as pull } from './pull.ts';
import { command as push } from './push.ts';
import { command as rmi } from './rmi.ts';
import { command as save } from './save.ts';
import { command as tag } from './tag.ts';

const inspect: Command = {
  name: 'image inspect',
  summary: 'Show everything about images',
  usage: '[OPTIONS] IMAGE [IMAGE...]',
  flags: [{ ...FLAG_FORMAT, short: 'f', help: "Print with a Go template, or 'json'" }, FLAG_JSON],
  refused: REFUSED_PLATFORM,
  minArguments: 1,
  completes: 'images',
  examples: ["kata image inspect -f '{{.Size}}' busybox"],
  run: (context, flags) => inspectObjects(context, flags, 'image'),
};

export const command: Command = group('image', 'Manage images', [
  { ...images, name: 'image ls' },
  { ...rmi, name: 'image rm' },
  inspect,
  prune,
  { ...pull, name: 'image pull' },
  { ...push, name: 'image push' },
  { ...tag, name: 'image tag' },
  { ...load, name: 'image load' },
  { ...save, name: 'image save' },
]);
