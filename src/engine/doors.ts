/** Owners of sandboxes beside the engine's own containers; wiring.ts gives them. */
export interface Doors {
  /** The sandbox's directory is such an owner's. */
  owns(uid: string): boolean;
  /** Takes up what an earlier engine left of it. */
  recover(uid: string): Promise<void>;
  /** The sandbox's keeper announced itself. Idempotent. */
  open(uid: string): Promise<void>;
}
