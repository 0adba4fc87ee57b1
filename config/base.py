"""Every setting of a run with its default; a recipe (`config/recipes.py`) is a small change to it.

The defaults are the published values of Stable Diffusion 3.5 Medium (arXiv 2505.05470, 2602.06422).
The comments come from tp_grpo/settings; after a change there run `python scripts/config_docs.py`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The locked base configuration; setting an unknown field raises and names the nearest one."""
    c = ConfigDict()
    c.run_name = ""  # Folder below output_dir; the same name resumes the run.
    c.output_dir = "runs"  # Folder that holds the runs' folders.
    c.seed = 42  # Fixes all noise, prompt order and initial weights.
    c.epochs = 1000  # Epochs of sampling, scoring, credit and `train.updates_per_epoch` updates.
    _model(c)
    _data(c)
    _sample(c)
    _credit(c)
    _train(c)
    _run(c)
    return c.lock()


def _model(c: ConfigDict) -> None:
    c.model = ConfigDict()
    # Model family, whose adapter reads the checkpoint; docs/models.md lists them.
    c.model.type = "sd3"
    # Folder of the checkpoint, or its id on the hub.
    c.model.path = "stabilityai/stable-diffusion-3.5-medium"
    # LoRA merged into the frozen weights as they load: a folder or file of peft, diffusers or
    # kohya; empty: none.
    c.model.adapter = ""
    c.model.revision = ""  # Revision of a hub id; empty: the newest.
    # Precision of frozen weights and forward pass (fp16 needs CUDA); LoRA stays fp32. One of: fp32,
    # bf16, fp16.
    c.model.dtype = "fp16"
    c.model.height = 512  # Height of the images.
    c.model.width = 512  # Width of the images.
    c.model.max_sequence_length = 128  # Length of a prompt for T5.
    c.model.decode_batch_size = 8  # Images per call of the VAE.
    c.model.vae_dtype = "fp32"  # Precision of the VAE. One of: fp32, bf16.
    # Place between uses: offload (host memory), resident (the device) or drop (freed).
    c.model.text_encoders = "offload"
    # Folder of prompt embeddings, shared by runs, 1-2 MB per prompt; empty: none.
    c.model.embeddings_cache = ""
    c.model.gradient_checkpointing = False  # Recompute activations in the backward pass.
    # Kernel by diffusers' name, as "flash" or "_native_cudnn"; empty: PyTorch's.
    c.model.attention_backend = ""
    # torch.compile backend of the transformer's blocks, such as "inductor"; empty: eager.
    c.model.compile = ""

    c.lora = ConfigDict()
    c.lora.rank = 32  # Rank of the adapter; 0: none, the whole transformer is trained.
    c.lora.alpha = 64  # The adapter's output is scaled by alpha / rank.
    # LoRA of the same rank that the trained one begins as: a folder or file of peft, diffusers or
    # kohya; empty: none. The KL stays to the model without it.
    c.lora.init = ""
    c.lora.targets = ()  # Modules to adapt; empty: the backbone's published ones.


def _data(c: ConfigDict) -> None:
    c.prompts = ConfigDict()
    # Training prompts: a .txt (a prompt per line), a .jsonl ({"prompt": ..., metadata}),
    # "module:function", or a folder with train.jsonl, train_metadata.jsonl or train.txt.
    c.prompts.train = ""
    # Held-out prompts; as train, but of a folder test.jsonl, test_metadata.jsonl or test.txt.
    c.prompts.eval = ""

    c.rewards = ConfigDict()
    # Scorers, {name or "module:callable": {"weight": 1.0, options}}; weight 0: evaluations alone.
    # Every scorer takes batch_size (images per call, 0: all at once), placement (cuda, offload,
    # cpu, remote), remote (URL of a reward server, or of several) and patience (seconds of retries
    # while it is out of reach, 600).
    c.rewards.scorers = ConfigDict(allow_dotted_keys=True)
    # Share of an epoch's images that may lack a score before the run stops.
    c.rewards.max_failed = 0.05


def _sample(c: ConfigDict) -> None:
    c.sample = ConfigDict()
    c.sample.steps = 10  # T, denoising steps of a training rollout.
    c.sample.guidance_scale = 4.5  # Strength of the guidance; 1: no classifier-free guidance.
    c.sample.kind = "cps"  # Stochastic step: sde (Flow-GRPO) or cps (Flow-CPS).
    c.sample.noise_level = 0.7  # Noise of the stochastic steps; at most 1 for cps.
    # What the images of a prompt share: trajectories (the prompt alone) or shared_state (all steps
    # up to a state of the window, where the policy draws group_size next states).
    c.sample.groups = "trajectories"
    # shared_state: the window's step at which a group forks: spread (in proportion to how much the
    # rewards of a group have differed there), uniform or first.
    c.sample.fork = "spread"
    # Place of the window: fixed (window_start), random (drawn for each epoch, Flow-GRPO-Fast) or
    # sliding (a step later every window_every epochs, then from the start; MixGRPO).
    c.sample.window = "fixed"
    c.sample.window_start = 0  # First stochastic step; of random and sliding the least.
    # K, stochastic steps; all of them are trained. shared_state: the steps to fork at.
    c.sample.window_size = 9
    # random, sliding: the step that the window ends before at the latest; 0: the last.
    c.sample.window_stop = 0
    c.sample.window_every = 12  # sliding: epochs at one place.
    c.sample.groups_per_epoch = 48  # Prompts per epoch, over all ranks.
    c.sample.group_size = 24  # Images per prompt.
    # Rows of a model call on the trajectories: images; of shared_state groups.
    c.sample.batch_size = 9
    c.sample.max_rows = 36  # ODE branches, or candidates of shared states, per model call.
    # How states are completed: euler (every step), reuse (euler, but below sigma 0.02 the last
    # velocity serves again), multistep (second order), strided (every completion_stride-th step) or
    # tweedie (the x_0 that the state predicts).
    c.sample.completion = "euler"
    c.sample.completion_steps = 3  # multistep: evaluations per completion, a branch's own included.
    c.sample.completion_stride = 2  # strided: steps per evaluation.
    # First state of the window to complete; 0: the ladder begins with the pure ODE.
    c.sample.branch_from = 0
    # Steps from one completed state to the next; they share their credit.
    c.sample.branch_every = 1
    c.sample.same_latent = False  # Start a prompt's images from one noise: they share a baseline.
    c.sample.store_on_cpu = False  # Keep an epoch's rollouts in host memory until the update.


def _credit(c: ConfigDict) -> None:
    c.credit = ConfigDict()
    # Credit of each step: terminal is Flow-GRPO's, turning_point TP-GRPO's. One of: terminal,
    # incremental, turning_point, value.
    c.credit.name = "turning_point"
    # turning_point: the step must also agree in sign with what follows it.
    c.credit.constraint = True
    c.credit.balance = True  # turning_point: keep as many positive as negative turning points.
    # value: from 0 (what the step itself added; biased) to 1 (all that follows; unbiased).
    c.credit.lam = 1.0

    c.advantage = ConfigDict()
    # Divide by the std of the epoch's column (of the groups with the same fork step), not of the
    # group.
    c.advantage.global_std = False
    c.advantage.clip = 5.0  # Advantages are clamped to +- this.
    # Multiply the difference from the group's mean by this; 0: divide it by the std.
    c.advantage.scale = 0.0
    # Mean and std of each step, or joint ones of all of a group's steps (Stepwise).
    c.advantage.over = "step"
    # Several scores: sum (advantages of the weighted sum) or gdpo (the weighted sum of each score's
    # own group advantages, whitened over the epoch).
    c.advantage.combine = "sum"

    c.objective = ConfigDict()
    # Loss of an update. On the next states: grpo, guard, dppo. On clean images: matching (at the
    # states that sampling visited), nft, elbo_pg, awm, dgpo (noised afresh).
    c.objective.name = "grpo"
    c.objective.timesteps = 2  # nft, elbo_pg, awm, dgpo: times at which each image is noised.
    # nft, elbo_pg, awm, dgpo: share of the rollout's times, from sigma = 1, to draw from.
    c.objective.noisiest = 1.0
    c.objective.dppo_limit = 1e-5  # dppo: KL of a step at which its trust region ends.
    c.objective.trust = 1.0  # matching: weight of the pull towards the policy that sampled.
    c.objective.nft_mix = 1.0  # nft: its beta, the share of the policy in the velocities v+ and v-.
    c.objective.elbo_form = "no_ratio"  # elbo_pg: form of the loss. One of: ratio, no_ratio, par.
    c.objective.awm_power = 0.25  # awm: power of the matching error in the log-prob.
    c.objective.awm_clip = 1.0  # awm: clip range of the ratio.
    c.objective.awm_pull = 1.0  # awm: weight of the distance from the lagging policy.
    c.objective.dgpo_sharpness = 10.0  # dgpo: its beta, how sharply a group is compared.
    # dgpo: range of the ratio beyond which an image gives no gradient.
    c.objective.dgpo_clip = 1e-3
    # Updates before the old policy, which samples, lags: after each epoch old = eta old + (1 - eta)
    # policy, with eta 0 until then. awm: of the lagging policy, which does not sample.
    c.objective.old_flat = 0
    # How much eta rises with each update; 0: the old policy is always the newest.
    c.objective.old_ramp = 0.0
    c.objective.old_max = 0.5  # Largest eta.


def _train(c: ConfigDict) -> None:
    c.train = ConfigDict()
    c.train.updates_per_epoch = 2  # Updates per epoch, each on equally many whole groups.
    c.train.inner_epochs = 1  # Passes over an epoch's samples.
    # (image, step) pairs per backward pass: whole rollout batches, at several steps where more than
    # one fits; 0: one. More is faster where a batch does not fill the device, but no longer repeats
    # sampling's rounding bit for bit.
    c.train.batch_size = 0
    # nft, elbo_pg, awm, dgpo: guidance of the trained velocity, 1 without; 0: as in sampling.
    c.train.guidance_scale = 0.0
    c.train.learning_rate = 3e-4  # Learning rate, constant.
    c.train.optimizer = "adamw"  # Optimizer; adamw_8bit needs bitsandbytes.
    c.train.adam_betas = (0.9, 0.999)  # Decay of the averages of the gradient and of its square.
    c.train.weight_decay = 1e-4  # Weight decay of AdamW, times the learning rate.
    c.train.adam_eps = 1e-8  # Added to the root of the mean square.
    c.train.max_grad_norm = 1.0  # Larger gradients are scaled down to this norm.
    # Clip range of the ratio, which moves little: log-probs are means over the latent.
    c.train.clip_range = 1e-5
    c.train.beta = 1e-4  # Weight of the KL to the frozen model; 0 leaves it out.
    # Loss weight of a step, of mean 1: uniform, velocity (std / |d mean / d v|; grpo, dppo) or
    # noise (std, TempFlow; grpo, dppo, matching).
    c.train.step_weight = "uniform"
    # The run stops if an epoch's first ratios, of the unmoved policy, are further from 1.
    c.train.max_ratio_dev = 1e-5
    # Updates with a NaN or infinite gradient are skipped; more than this in a row stop the run. The
    # loss scaler of fp16 skips a few until it has found its scale.
    c.train.max_skipped = 10

    c.ema = ConfigDict()
    c.ema.decay = 0.9  # Upper limit of the decay, warmed up as (1 + i) / (10 + i).
    c.ema.every = 8  # Updates between two averages.


def _run(c: ConfigDict) -> None:
    c.eval = ConfigDict()
    c.eval.every = 20  # Epochs between evaluations; also before the first and after the last.
    c.eval.steps = 40  # ODE steps of an evaluation.
    c.eval.members = 1  # Images per prompt.
    c.eval.prompts = 0  # Only the first N evaluation prompts; 0: all.
    c.eval.batch_size = 9  # Images per model call.
    c.eval.images = 24  # Images kept for the report, before and after side by side.

    c.checkpoint = ConfigDict()
    # auto: resume where run_name stopped; never: refuse if it holds a run; the folder of a
    # checkpoint, this run's or another's: begin there and remove what run_name has of later epochs;
    # the same command, given again, resumes. With another's the model, LoRA, EMA and optimizer must
    # stay; the rest may change.
    c.checkpoint.resume = "auto"
    c.checkpoint.keep = 2  # Newest checkpoints that stay; an older one replaces a damaged one.
    c.checkpoint.keep_every = 20  # Epochs between checkpoints that stay for good.
    # The checkpoint with the highest evaluation of this score also stays, as checkpoints/best:
    # "total", a scorer's name or "scorer/extra"; empty: none.
    c.checkpoint.best = "total"
    # Seconds that an epoch may still take to its checkpoint after SIGTERM or SIGUSR1 on any rank; a
    # longer one stops at the next batch and is repeated on resume. Schedulers, and torch's
    # launcher, often kill 30 seconds after SIGTERM.
    c.checkpoint.grace = 20.0

    c.runtime = ConfigDict()
    c.runtime.timeout_s = 1800.0  # Seconds that a rank waits for the others before the run stops.
    # Several ranks on one GPU. They communicate by gloo, which is slow.
    c.runtime.share_gpus = False

    c.tracking = ConfigDict()
    # Trackers besides metrics.jsonl. Any of: tensorboard, wandb.
    c.tracking.trackers = ("tensorboard",)
    c.tracking.project = "tp_grpo"  # Name under which the trackers file the run.
    c.tracking.images_every = 20  # Epochs between ladders kept with thumbnails.
    c.tracking.groups = 2  # Prompt groups whose images are kept then.
    # On signs of a wasted run: warn, stop, rollback (stop, export the best) or off.
    c.tracking.alarms = "warn"
