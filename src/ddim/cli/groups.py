"""Under which heading of a command's `--help` each option stands, and what it takes.

An option goes by the name of its field, whatever the command; a field that is listed nowhere stands under "Other". The
headings appear in the order in which they are listed here, and the options under each in the order of their dataclass.
"""

from __future__ import annotations

OTHER = "Other"

_GUIDANCE = "guidance_scale guidance_rescale guidance_interval source_guidance_scale"

_XL = (
    "original_size crop target_size negative_original_size negative_crop negative_target_size aesthetic_score "
    "negative_aesthetic_score denoising_start denoising_end refiner refiner_start"
)
_STEERING = (
    "controlnet control_image control_from condition condition_cells guess_mode control_guidance_start "
    "control_guidance_end"
)

OF_DRAWING = {
    "Which shell": "shell",
    "What to draw": "prompt prompts images model lora textual_inversion source target negative_prompt weights "
    "prompt_2 negative_prompt_2 class_label class_labels batch height width seeds results",
    "What Stable Diffusion XL is told": _XL,
    "Which of the model's files": "vae variant tokenizer prediction_type",
    "How to go between them": "frames grid rows between_texts",
    "How to sample": "steps eta order spacing zero_snr seed method moments check",
    "Guidance": _GUIDANCE,
    "To start from a picture": "image strength mask_image from_image trust",
    "To steer by a picture": _STEERING,
    "Where and how it runs": "dtype backend device batch_size",
    "What is written": "before loop fps scale labels out overwrite",
}

OF_MEASURING = {
    "What to measure": "model against steps eta samples seeds consistency",
    "Which of the model's files": "variant tokenizer prediction_type",
    "What to draw": "prompts labels image_column label_column caption_column",
    "How to search": "reference",
    "How to sample": "order spacing clip_sample seed batch",
    "How to compare": "features features_weights",
    "Guidance": _GUIDANCE,
    "Where and how it runs": "dtype backend device workers ray_address",
    "What is written": "out overwrite",
}

OF_SERVING = {
    "What is served": "model controlnet max_models studio",
    "Where, and to whom": "host port browser api_key_file auth_file add_user allow_anonymous cors_origin public_url",
    "How much at a time": "max_batch max_queue max_n max_side deadline grace",
    "Pictures that are fetched by an address": "store_megabytes store_seconds",
    "Where and how it runs": "replicas ray_address dtype backend device",
    "The log": "log_format log_prompts",
}

OF_GENERATING = {
    "What to draw": "prompts model lora textual_inversion negative_prompt prompt_2 negative_prompt_2 class_label seed "
    "height width",
    "What Stable Diffusion XL is told": _XL,
    "Which of the model's files": "vae variant tokenizer prediction_type",
    "How to sample": "steps eta order spacing zero_snr",
    "Guidance": "guidance_scale guidance_rescale guidance_interval",
    "To start from a picture": "strength",
    "To steer by a picture": _STEERING,
    "What is written": "out format retry_errors",
    "Who draws": "workers threads ray_address shard any_hardware",
    "Where and how it runs": "batch_size dtype backend device",
}

OF_TRAINING = {
    "What is written": "output_dir save_dtype save_model_epochs",
    "The teacher and the student": "model steps timesteps method teacher_steps guidance_scale guidance_rescale "
    "guidance_range trajectories backend",
    "What the ControlNet is shown": "condition condition_cells conditioning_image_column conditioning_data_dir "
    "conditioning_embedding_out_channels controlnet_model_name_or_path",
    "The word": "placeholder_token initializer_token learnable_property num_vectors templates_file",
    "The data": "prompts_file data dataset_name dataset_config_name train_data_dir image_column caption_column "
    "label_column class_conditional max_train_samples",
    "What is done to the pictures": "resolution aspect_ratio_buckets min_bucket_reso max_bucket_reso bucket_reso_steps "
    "bucket_no_upscale image_interpolation_mode center_crop random_flip random_background permute_colors",
    "The model": "pretrained_model_name_or_path pretrained_vae_model_name_or_path model_config_name_or_path rank "
    "block_out_channels layers_per_block attention_levels attention_head_dim attention_heads dropout latent_channels "
    "mid_block_add_attention text_dim text_layers text_heads vocab_size max_tokens train_text_encoder",
    "Noise and loss": "prediction_type num_train_timesteps beta_schedule rescale_betas_zero_snr timestep_spacing "
    "snr_gamma noise_offset input_perturbation dream_training dream_detail_preservation "
    "timestep_bias_strategy timestep_bias_multiplier timestep_bias_portion timestep_bias_begin timestep_bias_end "
    "class_dropout caption_dropout "
    "kl_weight mse_weight gradient_weight",
    "Steps and optimizer": "train_batch_size gradient_accumulation_steps max_train_steps num_train_epochs "
    "max_train_seconds learning_rate scale_lr lr_scheduler lr_decay_steps lr_warmup_steps lr_num_cycles lr_power "
    "lr_decay_share adam_beta1 adam_beta2 adam_weight_decay adam_epsilon use_8bit_adam max_grad_norm seed",
    "The average of the weights": "use_ema ema_decay ema_power ema_inv_gamma offload_ema",
    "Memory and speed": "mixed_precision allow_tf32 gradient_checkpointing dataloader_num_workers cache_latents "
    "cache_text_embeddings",
    "Checkpoints": "checkpointing_steps checkpoints_total_limit resume_from_checkpoint",
    "Previews and logs": "validation_steps validation_epochs validation_prompts validation_images "
    "num_validation_images "
    "validation_inference_steps logging_steps report_to logging_dir tracker_project_name",
    "The hub": "push_to_hub hub_model_id hub_private_repo hub_token revision non_ema_revision variant cache_dir",
}

# What is to be typed for the options that are text, where that says more than "TEXT".
TAKES = {
    "PATH": "features_weights from_image image images mask_image control_from out output_dir resume_from_checkpoint "
    "train_data_dir logging_dir conditioning_data_dir cache_dir prompts_file templates_file api_key_file",
    "MODEL": "model vae pretrained_model_name_or_path pretrained_vae_model_name_or_path model_config_name_or_path",
}


def heading(command: str, field: str) -> str:
    """The heading of an option, by the words of its command and the name of its field.

    >>> heading("sample", "eta"), heading("train vae", "seed")
    ('How to sample', 'Steps and optimizer')
    """
    return next((title for title, names in headings(command).items() if field in names.split()), OTHER)


def headings(command: str) -> dict[str, str]:
    """All headings of a command, each with the names of fields that stand under it."""
    tables = {
        "train": OF_TRAINING,
        "distill": OF_TRAINING,
        "evaluate": OF_MEASURING,
        "optimize": OF_MEASURING,
        "generate": OF_GENERATING,
        "serve": OF_SERVING,
        "studio": OF_SERVING,
    }
    return tables.get(command.split()[0], OF_DRAWING)


def text_for(field: str) -> str:
    """What is to be typed for an option that is text, by the name of its field.

    >>> text_for("out"), text_for("prompt")
    ('PATH', 'TEXT')
    """
    return next((kind for kind, names in TAKES.items() if field in names.split()), "TEXT")
