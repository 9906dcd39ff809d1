"""The contracts: a line for everything of vLLM, DeepSpeed, Ray and torch's distributed side that rlreason depends on.

To add a line, name the definition as rlreason imports it, and say what is passed or read; `check` describes the kinds.
`tests/test_contracts.py` fails with the line to add where rlreason imports or calls something that is not listed. Methods
of values that a library returns (an engine, a process group) are beyond its sight and have to be listed by hand.
"""

from __future__ import annotations

from contracts.check import Contract, compiled, exists, has, holds, takes

VLLM = [
    # Engine and its arguments: rollout.py
    takes("vllm.EngineArgs",
          "model=, trust_remote_code=, load_format=, seed=, disable_log_stats=, logprobs_mode=, weight_transfer_config=, "
          "dtype=, enforce_eager=, max_model_len=, enable_sleep_mode=, gpu_memory_utilization=, hf_overrides=, max_num_seqs=, "
          "block_size=, enable_chunked_prefill=, num_gpu_blocks_override=, enable_prefix_caching=, tensor_parallel_size=, "
          "pipeline_parallel_size=, distributed_executor_backend="),
    takes("vllm.EngineArgs.create_model_config"),
    has("vllm.EngineArgs", "tensor_parallel_size pipeline_parallel_size"),
    holds("vllm.config.model.LogprobsMode", "processed_logprobs"),
    holds("vllm.model_executor.model_loader.LoadFormats", "dummy"),
    takes("vllm.LLMEngine.from_engine_args", "engine_args"),
    takes("vllm.LLMEngine.get_tokenizer"),
    takes("vllm.LLMEngine.add_request", "request_id, prompt, params"),
    takes("vllm.LLMEngine.abort_request", "request_ids"),
    takes("vllm.LLMEngine.step"),
    takes("vllm.LLMEngine.has_unfinished_requests"),
    takes("vllm.LLMEngine.sleep", "level="),
    takes("vllm.LLMEngine.wake_up", "tags="),
    takes("vllm.LLMEngine.collective_rpc", "method, args="),
    has("vllm.LLMEngine", "model_config vllm_config engine_core"),
    takes("vllm.v1.engine.core_client.EngineCoreClient.shutdown"),
    has("vllm.config.VllmConfig", "parallel_config"),
    has("vllm.config.ParallelConfig", "world_size rank"),
    holds("vllm.config.parallel.DistributedExecutorBackend", "mp"),
    holds("vllm.v1.worker.gpu_worker.Worker", "weights kv_cache"),
    # What a model says of itself
    has("vllm.config.ModelConfig", "max_model_len hf_text_config use_mla architectures"),
    takes("vllm.config.ModelConfig.get_total_num_kv_heads"),
    takes("vllm.config.ModelConfig.get_head_size"),
    takes("vllm.v1.attention.backends.cpu_attn.CPUAttentionBackend.get_supported_head_sizes"),
    # Requests and answers
    takes("vllm.SamplingParams",
          "n=, temperature=, top_p=, max_tokens=, stop=, logprobs=, flat_logprobs=, seed=, detokenize=, skip_special_tokens=, "
          "output_kind=, prompt_logprobs="),
    has("vllm.sampling_params.RequestOutputKind", "FINAL_ONLY"),
    takes("vllm.TokensPrompt", "prompt_token_ids=, cache_salt="),
    has("vllm.outputs.RequestOutput", "request_id outputs finished prompt_logprobs"),
    has("vllm.outputs.CompletionOutput", "text token_ids logprobs finish_reason"),
    has("vllm.logprobs.FlatLogprobs", "logprobs"),
    has("vllm.logprobs.Logprob", "logprob"),
    # Weight transfer
    takes("vllm.config.WeightTransferConfig", "backend="),
    takes("vllm.distributed.weight_transfer.WeightTransferEngineFactory.register_engine", "name, _, class_name"),
    holds("vllm.plugins.DEFAULT_PLUGINS_GROUP", "vllm.general_plugins"),
    exists("vllm.distributed.weight_transfer.base.WeightTransferEngine"),
    takes("vllm.distributed.weight_transfer.base.WeightTransferEngine.parse_update_info", "update_dict"),
    takes("vllm.model_executor.model_loader.reload.initialize_layerwise_reload", "model"),
    takes("vllm.model_executor.model_loader.reload.finalize_layerwise_reload", "model, model_config"),
    takes("vllm.model_executor.layers.utils.dispatch_cpu_unquantized_gemm", "layer, remove_weight="),
    # Called on the workers, by functions that LLMEngine.collective_rpc runs there
    takes("vllm.v1.worker.gpu_worker.Worker.init_weight_transfer_engine", "init_info"),
    takes("vllm.v1.worker.gpu_worker.Worker.start_weight_update"),
    takes("vllm.v1.worker.gpu_worker.Worker.update_weights", "update_info"),
    takes("vllm.v1.worker.gpu_worker.Worker.finish_weight_update"),
    # Environment
    has("vllm.envs", "VLLM_CPU_KVCACHE_SPACE"),
    holds("vllm.envs.environment_variables",
          "VLLM_CPU_KVCACHE_SPACE VLLM_CPU_OMP_THREADS_BIND VLLM_ENABLE_V1_MULTIPROCESSING VLLM_HOST_IP VLLM_LOGGING_LEVEL "
          "VLLM_NO_USAGE_STATS"),
]  # fmt: skip

DEEPSPEED = [
    # learner.py, frozen.py, moved.py
    takes("deepspeed.initialize", "model=, optimizer=, lr_scheduler=, config="),
    takes("deepspeed.init_distributed", "dist_backend, verbose="),
    exists("deepspeed.ops.__compatible_ops__"),
    takes("deepspeed.zero.GatheredParameters", "params, modifier_rank=, enabled="),
    takes("deepspeed.utils.safe_get_full_fp32_param", "param"),
    has("deepspeed.DeepSpeedEngine", "module optimizer lr_scheduler"),
    takes("deepspeed.DeepSpeedEngine.backward", "loss"),
    takes("deepspeed.DeepSpeedEngine.step"),
    takes("deepspeed.DeepSpeedEngine.zero_grad"),
    takes("deepspeed.DeepSpeedEngine.was_step_applied"),
    takes("deepspeed.DeepSpeedEngine.get_global_grad_norm"),
    takes("deepspeed.DeepSpeedEngine.get_lr"),
    takes("deepspeed.DeepSpeedEngine.set_gradient_accumulation_boundary", "is_boundary"),
    takes("deepspeed.DeepSpeedEngine.zero_optimization_stage"),
    takes("deepspeed.DeepSpeedEngine.save_checkpoint", "save_dir, tag=, client_state=, save_latest="),
    takes("deepspeed.DeepSpeedEngine.load_checkpoint", "load_dir, tag="),
    # Keys of its configuration
    holds("deepspeed.runtime.constants.TRAIN_MICRO_BATCH_SIZE_PER_GPU", "train_micro_batch_size_per_gpu"),
    holds("deepspeed.runtime.constants.ZERO_ALLOW_UNTESTED_OPTIMIZER", "zero_allow_untested_optimizer"),
    holds("deepspeed.runtime.constants.GRADIENT_CLIPPING", "gradient_clipping"),
    holds("deepspeed.runtime.constants.BFLOAT16", "bf16"),
    holds("deepspeed.runtime.zero.config.ZERO_OPTIMIZATION", "zero_optimization"),
    has("deepspeed.runtime.zero.config.DeepSpeedZeroConfig", "stage"),
    holds("deepspeed.accelerator.real_accelerator.get_accelerator", "DS_ACCELERATOR"),
]

OPTIONS = "ray._common.ray_option_utils"
RAY = [
    # cluster.py, worker.py
    takes("ray.init",
          "address=, include_dashboard=, log_to_driver=, configure_logging=, _node_ip_address=, _temp_dir="),
    takes("ray.is_initialized"),
    takes("ray.shutdown"),
    takes("ray.available_resources"),
    takes("ray.nodes"),
    takes("ray.get", "_, timeout="),
    takes("ray.put", "_"),
    takes("ray.kill", "_"),
    takes("ray.remote", "num_cpus=, max_retries=, concurrency_groups=", via=OPTIONS),
    takes("ray.method", "concurrency_group="),
    takes("ray.remote_function.RemoteFunction.options", "scheduling_strategy=", via=OPTIONS),
    takes("ray.actor.ActorClass.options",
          "runtime_env=, num_cpus=, num_gpus=, max_concurrency=, scheduling_strategy=", via=OPTIONS),
    takes("ray.actor.ActorClass.remote", "_, _"),
    takes("ray.util.get_node_ip_address"),
    takes("ray.util.placement_group.placement_group", "bundles, strategy="),
    takes("ray.util.placement_group.PlacementGroup.wait", "timeout_seconds"),
    takes("ray.util.placement_group.remove_placement_group", "placement_group"),
    holds("ray.util.placement_group.VALID_PLACEMENT_GROUP_STRATEGIES", "PACK"),
    takes("ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy", "placement_group, placement_group_bundle_index="),
    takes("ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy", "node_id, soft="),
    exists("ray.exceptions.GetTimeoutError"),
    exists("ray.exceptions.NodeDiedError"),
    exists("ray.exceptions.OutOfMemoryError"),
    exists("ray.exceptions.RayActorError"),
    exists("ray.exceptions.RayError"),
    exists("ray.exceptions.WorkerCrashedError"),
    has("ray.exceptions.RayTaskError", "cause"),
    # Private: overridden while Ray starts
    exists("ray._private.ray_constants.ENABLE_RAY_CLUSTER"),
    takes("ray._private.utils.set_sigterm_handler", "sigterm_handler"),
]  # fmt: skip

TORCH = [
    # meeting.py, learner.py, weights.py; what a C extension defines is read from its stubs
    takes("torch.distributed.init_process_group", "backend, store=, rank=, world_size=, timeout="),
    takes("torch.distributed.TCPStore",
          "host_name, port, world_size, is_master=, timeout=, wait_for_workers=, master_listen_fd="),
    has("torch.distributed.TCPStore", "host port"),
    takes("torch.distributed.TCPStore.set", "key, value"),
    takes("torch.distributed.TCPStore.check", "keys"),
    takes("torch.distributed.PrefixStore", "prefix, store"),
    # Process groups by hand; the stub of gloo's constructor has only the overload with a timeout
    takes("torch.distributed.ProcessGroupNCCL", "store, rank, size, options"),
    takes("torch.distributed.ProcessGroupNCCL.Options"),
    has("torch.distributed.ProcessGroupNCCL.Options", "_timeout"),
    takes("torch.distributed.ProcessGroupNCCL.abort"),
    takes("torch.distributed.ProcessGroupGloo", "store, rank, size, _"),
    compiled("torch.distributed.ProcessGroupGloo._Options._devices"),
    compiled("torch.distributed.ProcessGroupGloo._Options._timeout"),
    compiled("torch.distributed.ProcessGroupGloo.broadcast"),
    takes("torch.distributed.ProcessGroupGloo.create_device", "hostname="),
    takes("torch.distributed.ProcessGroupGloo.set_timeout", "timeout"),
    takes("torch.distributed.ProcessGroupGloo.abort"),
    takes("torch.distributed.BroadcastOptions"),
    has("torch.distributed.BroadcastOptions", "rootRank rootTensor"),
    takes("torch.distributed.Work.is_completed"),
    takes("torch.distributed.Work.wait"),
    takes("torch.distributed.is_initialized"),
    takes("torch.distributed.all_reduce", "tensor"),
    takes("torch.distributed.all_gather_object", "object_list, obj"),
    takes("torch.distributed.barrier"),
    takes("torch.cuda.Event", "enable_timing="),
    takes("torch.cuda.current_device"),
    takes("torch.cuda.empty_cache"),
    takes("torch.cuda.ipc_collect"),
    takes("torch.cuda.synchronize"),
    takes("torch.accelerator.synchronize"),
    takes("torch.multiprocessing.reductions.reduce_tensor", "tensor"),
    # The arguments that `reduce_tensor` returns are passed on by position, but for the seventh, the device
    takes("torch.multiprocessing.reductions.rebuild_cuda_tensor",
          "tensor_cls, tensor_size, tensor_stride, tensor_offset, storage_cls, dtype, storage_device, _, _, _, _, _, _, _, _"),
]  # fmt: skip

TABLE: list[Contract] = [*VLLM, *DEEPSPEED, *RAY, *TORCH]
