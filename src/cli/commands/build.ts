import { KataError } from '../../base/index.ts';
import type { Command } from '../command.ts';

const WAYS = [
  'docker build -t app . && docker save app | kata load',
  'buildah build -t app . && buildah push app docker-archive:app.tar:app && kata load -i app.tar',
  'umoci repack --image layout:app bundle && kata load -i layout',
  'nix-build image.nix && kata load -i result    (dockerTools.buildImage)',
  'apko build app.yaml app:latest app.tar && kata load -i app.tar',
  'kata commit CONTAINER app    (from a container that was changed)',
];

export const command: Command = {
  name: 'build',
  summary: 'Say how images are built',
  usage: '[ARG...]',
  flags: [],
  stopAtArgument: true,
  minArguments: 0,
  examples: ['kata build'],
  notes: ['Nothing is built here. Images of other programs load and run:', ...WAYS.map((way) => `\`${way}\``)],
  async run() {
    throw new KataError('UNIMPLEMENTED', 'kata builds no images; it runs those that other programs build', {
      evidence: WAYS,
      hint: 'build with one of these, or push to a registry and `kata pull`',
    });
  },
};
