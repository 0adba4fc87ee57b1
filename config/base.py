"""Every field of a run, with its unit and meaning. A recipe (`config/recipes.py`) is a small change to these.

The defaults are the published values for Stable Diffusion 3.5 Medium (arXiv 2505.05470, 2602.06422).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The locked base configuration; setting an unknown field raises and names the nearest one."""
    c = ConfigDict()
    c.run_name = ""  # folder below output_dir; also what a resumed run is found by
    c.output_dir = "runs"  # folder of the runs' folders
    c.seed = 42  # every noise, prompt order and initial weight follows from it
    c.epochs = 1000  # one epoch: sample, score, credit, `train.updates_per_epoch` updates

    c.model = _model()
    c.lora = _lora()
    c.prompts = ConfigDict()
    # Each is a .txt (a prompt a line), a .jsonl ({"prompt": ..., metadata}), a folder or "module:function".
    c.prompts.train = ""  # of a folder: train.jsonl, train_metadata.jsonl or train.txt
    c.prompts.eval = (
        ""  # never trained on; of a folder: test.jsonl, test_metadata.jsonl or test.txt
    )

    c.rewards = ConfigDict()
    # name or "module:callable" -> {"weight": 1.0, its options}; weight 0: asked in evaluations alone. Of every scorer
    # also: batch_size (images a call, 0: all it is given), placement (cuda | offload | cpu | remote), remote (URL of a
    # reward server), patience (seconds that one out of reach is tried again, 600)
    c.rewards.scorers = ConfigDict(allow_dotted_keys=True)
    c.rewards.max_failed = (
        0.05  # share of an epoch's images that may come back without a score, before the run stops
    )

    c.sample = _sample()
    c.credit = ConfigDict()
    c.credit.name = (
        "turning_point"  # terminal (Flow-GRPO) | incremental | turning_point (TP-GRPO) | value
    )
    c.credit.constraint = (
        True  # turning_point: the step must also agree in sign with what follows it
    )
    c.credit.balance = True  # turning_point: keep as many positive as negative turning points
    c.credit.lam = 1.0  # value: from 0 (what the step itself added; biased) to 1 (all that follows it; unbiased)

    c.advantage = ConfigDict()
    c.advantage.global_std = (
        False  # divide by the std of the whole epoch's column, not of the prompt's group
    )
    c.advantage.clip = 5.0  # advantages are clamped to +- this

    c.train = _train()
    c.ema = ConfigDict()
    c.ema.decay = 0.9  # upper limit; warmed up as (1 + i) / (10 + i)
    c.ema.every = 8  # updates between two averages

    c.eval = ConfigDict()
    c.eval.every = 20  # epochs; also before the first epoch and after the last
    c.eval.steps = 40  # ODE steps
    c.eval.members = 1  # images a prompt
    c.eval.prompts = 0  # the first so many evaluation prompts; 0: all
    c.eval.batch_size = 9  # images a call
    c.eval.images = 24  # kept as pictures, before and after side by side in the report

    c.checkpoint = ConfigDict()
    # auto: go on where run_name stopped | never: refuse if it holds a run | the folder of a checkpoint, this run's or
    # another's: begin there and remove what run_name has of later epochs; the same command, given again, goes on. With
    # another's the model, LoRA, EMA and optimizer must stay, and the rest may change.
    c.checkpoint.resume = "auto"
    c.checkpoint.keep = (
        2  # the newest so many stay; the one before the newest is for when that is damaged
    )
    c.checkpoint.keep_every = 20  # epochs between checkpoints that stay for good
    # The checkpoint whose evaluation gave the highest of this score stays as well, as checkpoints/best: "total", a
    # scorer's name or "scorer/extra"; empty: none.
    c.checkpoint.best = "total"
    # Seconds that an epoch may still take to its checkpoint after SIGTERM or SIGUSR1 on any rank; one that would take
    # longer is stopped at the next batch and done again on resume. Schedulers, and torch's launcher, often kill 30
    # seconds after SIGTERM.
    c.checkpoint.grace = 20.0

    c.runtime = ConfigDict()
    c.runtime.timeout_s = (
        1800.0  # seconds that a rank waits for the others in a collective before the run stops
    )

    c.tracking = ConfigDict()
    c.tracking.trackers = ("tensorboard",)  # beside metrics.jsonl: any of "tensorboard", "wandb"
    c.tracking.project = "tp_grpo"  # the name that the trackers file the run under
    c.tracking.images_every = 20  # epochs between ladders kept with thumbnails
    c.tracking.groups = 2  # prompt groups whose completions are kept then
    c.tracking.alarms = (
        "warn"  # on signs of a wasted run: warn | stop | rollback (stop, export the best) | off
    )
    return c.lock()


def _model() -> ConfigDict:
    c = ConfigDict()
    c.type = "sd3"  # which backbone adapter reads the checkpoint
    c.path = "stabilityai/stable-diffusion-3.5-medium"  # a folder, or a hub id
    c.revision = ""  # of a hub id
    c.dtype = "fp16"  # of the frozen weights and the forward pass: fp32 | bf16 | fp16 (CUDA only); LoRA stays fp32
    c.height = 512  # pixels
    c.width = 512  # pixels
    c.max_sequence_length = 128  # T5 tokens
    c.decode_batch_size = 8  # images a VAE call
    c.vae_dtype = "fp32"  # fp32 | bf16
    c.text_encoders = (
        "offload"  # between uses: offload (host memory) | resident (on the device) | drop (freed)
    )
    c.embeddings_cache = (
        ""  # folder of prompt embeddings, shared by runs, 1-2 MB a prompt; empty: none
    )
    c.gradient_checkpointing = False  # recompute activations in the backward pass
    c.attention_backend = ""  # diffusers' name, such as "flash" or "_native_cudnn"; FLUX only; empty: PyTorch's choice
    c.compile = (
        ""  # torch.compile backend for the transformer's blocks, such as "inductor"; empty: eager
    )
    return c


def _lora() -> ConfigDict:
    c = ConfigDict()
    c.rank = 32  # 0: no adapter, the whole transformer is trained
    c.alpha = 64  # what the adapter gives is scaled by alpha / rank
    c.targets = ()  # module names; empty: the backbone's published ones
    return c


def _sample() -> ConfigDict:
    c = ConfigDict()
    c.steps = 10  # T, denoising steps of a training rollout
    c.guidance_scale = 4.5  # 1: no classifier-free guidance
    c.kind = "cps"  # the stochastic step: sde (Flow-GRPO) | cps (Flow-CPS)
    c.noise_level = 0.7  # of the stochastic steps; the noise grows with it, for cps up to 1
    c.window_start = 0  # first stochastic step
    c.window_size = 9  # K, stochastic steps; all of them are trained
    c.groups_per_epoch = 48  # prompts an epoch, over all ranks
    c.group_size = 24  # images a prompt
    c.batch_size = 9  # images a model call
    c.max_rows = 36  # ODE branches a model call
    # How states are completed: euler (every step) | reuse (but those from a sigma below 0.02, where the last velocity
    # serves again) | multistep (second order) | strided (every so many steps) | tweedie (the x_0 the state predicts)
    c.completion = "euler"
    c.completion_steps = 3  # multistep: evaluations a completion, a branch's own state included
    c.completion_stride = 2  # strided
    c.branch_from = 0  # the first state of the window that is completed; 0: the ODE baseline is the ladder's foot
    c.branch_every = (
        1  # states from one that is completed to the next; the steps between share the credit
    )
    c.same_latent = (
        False  # the images of a prompt start from one noise, so that they have one baseline
    )
    c.store_on_cpu = (
        False  # keep an epoch's trajectories and conditions in host memory until the update
    )
    return c


def _train() -> ConfigDict:
    c = ConfigDict()
    c.updates_per_epoch = 2  # each on groups_per_epoch / updates_per_epoch whole groups
    c.inner_epochs = 1  # passes over an epoch's samples
    # (image, step) pairs of a backward pass: whole rollout batches, at several steps where more than one fits; 0: one.
    # More are faster where a batch does not fill the device, but no longer repeat sampling's rounding bit for bit.
    c.batch_size = 0
    c.learning_rate = 3e-4  # constant
    c.optimizer = "adamw"  # adamw | adamw_8bit (bitsandbytes)
    c.adam_betas = (0.9, 0.999)  # decay of the averages of the gradient and of its square
    c.weight_decay = 1e-4  # of AdamW, times the learning rate
    c.adam_eps = 1e-8  # added to the root of the mean square
    c.max_grad_norm = 1.0  # a larger gradient is scaled down to it
    c.clip_range = 1e-5  # of the ratio; log-probs are means over the latent, so ratios move little
    c.beta = 1e-4  # weight of the KL to the frozen model; 0 leaves it out
    c.step_weight = (
        "uniform"  # loss weight of a step: uniform | velocity (1 / (|d mean / d v| / std), mean 1)
    )
    c.max_ratio_dev = (
        1e-5  # an epoch whose first ratios, of the unmoved policy, are further from 1 stops the run
    )
    # Updates whose gradient is NaN or infinite are left out; more than this in a row stop the run. The loss scaler of
    # fp16 leaves a few out until it has found its scale.
    c.max_skipped = 10
    return c
